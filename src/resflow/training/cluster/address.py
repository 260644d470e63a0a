"""`RAY_ADDRESS`: what may stand there, whether a cluster answers, and the token for it. Joining it is `session`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from resflow.errors import TrainingError
from resflow.files import home

__all__ = ["check_address", "token_path"]

SECONDS, ANSWER_SECONDS = 3.0, 10.0
"""How long a head may take to accept a connection, and to say a word then; Ray itself would try for minutes."""
SETTINGS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0))
"""What a client of HTTP/2, by which Ray's processes talk, says first, and whatever speaks it answers with settings of
its own: RFC 9113, sections 3.4 and 6.5."""


def check_address(address: str) -> None:
    """Pass where something speaks as Ray does, or where Ray is to find out by itself. Raises `TrainingError`."""
    if address in ("auto", "local"):
        return
    where = f"RAY_ADDRESS={address}"
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, or too large
        host, port = None, None
    if not host or not port or parts.netloc != address:
        mend = (
            "Write it like 10.0.0.5:6379, the port that `ray start --head` names, or unset it to train on this machine"
        )
        raise TrainingError(where, "is not HOST:PORT, auto or local", mend)
    try:
        connection = socket.create_connection((host, port), timeout=SECONDS)
    except OSError as error:
        mend = "Start the cluster, or unset RAY_ADDRESS"
        raise TrainingError(where, f"nothing answers there ({error})", mend) from error
    with connection:
        if os.environ.get("RAY_USE_TLS", "").lower() not in ("1", "true") and not _is_head(connection):
            mend = (
                "Name the port that `ray start --head` names, 6379 by default, and not its dashboard's; "
                "for a head with TLS set RAY_USE_TLS=1"
            )
            raise TrainingError(where, "what listens there does not answer as the head of a Ray cluster does", mend)


def _is_head(connection: socket.socket) -> bool:
    """Whether what is at the other end speaks HTTP/2."""
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.sendall(PREFACE)
        with connection.makefile("rb") as answer:
            return answer.read(4)[3:] == bytes((SETTINGS,))
    except OSError:
        return False


def token_path() -> Path:
    """Where Ray looks for the token of a cluster that `RAY_AUTH_TOKEN` does not hold. Raises `SetupError`."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or home() / ".ray" / "auth_token")
