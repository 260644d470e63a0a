"""Several hosts on one machine: network namespaces on a bridge, each with its own address, made and removed here.

    with network(3) as (head, *others):
        head.start(["ray", "start", "--head", ...], log=..., env=...)
        others[0].cut(); others[0].mend()

What runs on a host does not see the folders in `hides`, as if its disk were its own. Who is not root is root of a user
namespace, in which all of this is made.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

SUBNET = "10.213.77"
"""Lives inside the namespaces alone."""


@dataclass(frozen=True)
class Host:
    """One namespace with one interface, `eth0`."""

    name: str
    entrance: tuple[str, ...]
    """What a command begins with where its namespaces are known."""
    switch: str
    link: str
    """The other end of its cable."""
    address: str

    def command(self, command: Sequence[str], hides: Sequence[Path] = ()) -> list[str]:
        """`command` as it runs on this host."""
        inside = [*self.entrance, "ip", "netns", "exec", self.name]
        if not hides:
            return [*inside, *command]
        mounts = " && ".join(f"mount -t tmpfs none {shlex.quote(str(path))}" for path in hides)
        return [*inside, "unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]

    def start(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str], hides: Sequence[Path] = (), cwd: Path
    ) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own, its output in `log`."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self.command(command, hides),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def cut(self) -> None:
        """Pull the cable."""
        run(*self.entrance, "ip", "-n", self.switch, "link", "set", self.link, "down")

    def mend(self) -> None:
        """Put it back."""
        run(*self.entrance, "ip", "-n", self.switch, "link", "set", self.link, "up")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "the commands ip (iproute2) and unshare (util-linux) are needed"
    try:
        with network(1) as (host,):
            run(*host.command(["true"], hides=[Path("/mnt")]))
    except subprocess.CalledProcessError as error:
        return f"namespaces, mounts and bridges in them are not permitted here: {error.stderr.decode().strip()}"
    return None


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """`count` hosts on one switch, which has a namespace of its own: this machine's network is left alone."""
    mark = secrets.token_hex(2)
    switch = f"rf{mark}-switch"
    with _entrance() as entrance:

        def ip(*words: str) -> None:
            run(*entrance, "ip", *words)

        made = [switch]
        try:
            ip("netns", "add", switch)
            ip("-n", switch, "link", "add", "br0", "type", "bridge")
            ip("-n", switch, "link", "set", "br0", "up")
            hosts = []
            for number in range(count):
                host = Host(f"rf{mark}-{number}", entrance, switch, f"port{number}", f"{SUBNET}.{number + 1}")
                ip("netns", "add", host.name)
                made.append(host.name)
                ip(
                    *("link", "add", host.link, "netns", switch),
                    *("type", "veth", "peer", "name", "eth0", "netns", host.name),
                )
                ip("-n", switch, "link", "set", host.link, "master", "br0")
                ip("-n", switch, "link", "set", host.link, "up")
                ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
                for device in ("eth0", "lo"):
                    ip("-n", host.name, "link", "set", device, "up")
                hosts.append(host)
            yield hosts
        finally:
            for name in reversed(made):  # one that is gone must neither hide why a test failed nor keep the others
                subprocess.run([*entrance, "ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def _entrance() -> Iterator[tuple[str, ...]]:
    """What a command begins with that makes namespaces: nothing for root, for others a user namespace.

    It lives as long as a process in it. Raises `CalledProcessError` where it is not permitted.
    """
    if not os.geteuid():
        yield ()
        return
    make = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    # ip keeps names in /run/netns, where root alone may write
    own = "mount -t tmpfs none /run && mkdir /run/netns && echo made && exec cat"
    with subprocess.Popen([*make, "sh", "-c", own], stdin=PIPE, stdout=PIPE, stderr=PIPE) as holder:
        try:
            if not holder.stdout.readline():
                raise subprocess.CalledProcessError(holder.wait(), make, stderr=holder.stderr.read())
            enter = f"nsenter --target={holder.pid} --user --net --mount --preserve-credentials"
            yield ("sh", "-c", f'exec {enter} --wdns="$(pwd)" "$@"', "sh")  # else it begins in the root folder
        finally:
            holder.stdin.close()
