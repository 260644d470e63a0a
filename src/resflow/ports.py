"""TCP ports on this machine's loopback: which are free, and who holds one that is not.

Who uses them, and remembers them, is `resflow.store`.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = ["HOST", "find_free", "holder", "is_free"]

HOST = "127.0.0.1"
RANGE = range(20_000, 32_000)
"""Below the range from which Linux takes ports of outgoing connections: what is free there stays free for long."""


def find_free(count: int, *, besides: Collection[int] = (), offset: int = 0) -> list[int]:
    """So many free ports, none of them in `besides`; the ports `offset` above them are free too."""
    found: list[int] = []
    for port in random.sample(RANGE, len(RANGE)):
        if len(found) == count:
            break
        if port not in besides and is_free(port) and is_free(port + offset):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) in sockets for fd in (folder / "fd").iterdir()):  # noqa: PTH115
                return f"process {folder.name} ({(folder / 'comm').read_text().strip()})"
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return "another process"


def _listening(port: int) -> Iterator[str]:
    """The kernel's numbers of the sockets that listen on a port."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:  # no IPv6 here
            continue
        for fields in map(str.split, lines):
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: LISTEN
                yield fields[9]
