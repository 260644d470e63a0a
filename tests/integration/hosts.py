"""Several hosts on one machine: network namespaces on a bridge, each with its own address, made and removed here.

    with network(3) as (head, *others):
        head.start(["ray", "start", "--head", ...], log=..., env=...)
        others[0].cut(); others[0].mend()

What runs on a host does not see the folders in `hides`, as if its disk were its own.
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

SUBNET = "10.213.77"
"""Lives inside the namespaces alone."""


@dataclass(frozen=True)
class Host:
    """One namespace with one interface, `eth0`."""

    name: str
    switch: str
    link: str
    """The other end of its cable."""
    address: str

    def command(self, command: Sequence[str], hides: Sequence[Path] = ()) -> list[str]:
        """`command` as it runs on this host."""
        inside = ["ip", "netns", "exec", self.name]
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
        run("ip", "-n", self.switch, "link", "set", self.link, "down")

    def mend(self) -> None:
        """Put it back."""
        run("ip", "-n", self.switch, "link", "set", self.link, "up")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if os.geteuid():
        return "only root may make network namespaces"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "the commands ip (iproute2) and unshare (util-linux) are needed"
    name = f"rf{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    try:
        probe = ["ip", "netns", "exec", name, "unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
        tried = subprocess.run(probe, capture_output=True, text=True)
        cable = subprocess.run(
            ["ip", "-n", name, "link", "add", "br0", "type", "bridge"], capture_output=True, text=True
        )
        if tried.returncode or cable.returncode:
            return f"mounts and bridges in namespaces are not permitted here: {(tried.stderr + cable.stderr).strip()}"
    finally:
        _remove(name)
    return None


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """`count` hosts on one switch, which has a namespace of its own: this machine's network is left alone."""
    mark = secrets.token_hex(2)
    switch = f"rf{mark}-switch"
    made = [switch]
    run("ip", "netns", "add", switch)
    try:
        run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        hosts = []
        for number in range(count):
            host = Host(f"rf{mark}-{number}", switch, f"port{number}", f"{SUBNET}.{number + 1}")
            run("ip", "netns", "add", host.name)
            made.append(host.name)
            run(
                *("ip", "link", "add", host.link, "netns", switch),
                *("type", "veth", "peer", "name", "eth0", "netns", host.name),
            )
            run("ip", "-n", switch, "link", "set", host.link, "master", "br0")
            run("ip", "-n", switch, "link", "set", host.link, "up")
            run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                run("ip", "-n", host.name, "link", "set", device, "up")
            hosts.append(host)
        yield hosts
    finally:
        for name in reversed(made):
            _remove(name)


def _remove(name: str) -> None:
    """Remove a namespace; one that is gone must neither hide why a test failed nor keep the others."""
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
