"""TCP ports on this machine's loopback: which are free, and who holds one that is not.

Who uses them, and remembers them, is `resflow.store`.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from contextlib import suppress

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
    import psutil

    with suppress(psutil.Error):  # it ended meanwhile, or is another user's
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return f"process {one.pid} ({psutil.Process(one.pid).name()})"
    return "another process"
