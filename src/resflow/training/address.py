"""`RAY_ADDRESS`: what may stand there, whether a cluster answers, and the token for it. Joining it is `cluster`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from resflow.errors import TrainingError
from resflow.files import home

__all__ = ["check_address", "token_path"]

SECONDS = 3.0
"""How long a head may take to accept a connection; Ray itself would try for minutes."""


def check_address(address: str) -> None:
    """Pass where something listens, or where Ray is to find out by itself. Raises `TrainingError`."""
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
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError as error:
        mend = "Start the cluster, or unset RAY_ADDRESS"
        raise TrainingError(where, f"nothing answers there ({error})", mend) from error


def token_path() -> Path:
    """Where Ray looks for the token of a cluster that `RAY_AUTH_TOKEN` does not hold. Raises `SetupError`."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or home() / ".ray" / "auth_token")
