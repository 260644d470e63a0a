"""Is there a Prefect server where there should be one? Asked before a flow starts: Prefect itself would wait long."""

from __future__ import annotations

import errno
import os
import warnings
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from resflow.errors import SetupError

if TYPE_CHECKING:
    from prefect.settings import Settings

__all__ = ["check"]

SECONDS = 3.0
MEND = "Start it with `prefect server start`; or unset PREFECT_API_URL to run without one"


def check(needed: bool) -> str | None:
    """The address of the configured server, which answers; None where none is configured. Raises `SetupError`.

    Where one is `needed`, that none is configured is an error too.
    """
    settings = _settings()
    url = settings.api.url
    if url is None:
        if needed:
            mend = "Start one with `prefect server start`, then set PREFECT_API_URL=http://127.0.0.1:4200/api"
            raise SetupError("PREFECT_API_URL", "is not set, and a schedule needs a Prefect server", mend)
        _check_home(settings.home)
        return None
    try:
        answer = _ask(url, settings)
    except httpx.HTTPError as error:
        raise SetupError(f"PREFECT_API_URL={url}", f"no Prefect server answers there ({error})", MEND) from error
    if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        given = "refuses the user and password" if settings.api.auth_string else "asks for a user and a password"
        mend = "Set PREFECT_API_AUTH_STRING=user:password as PREFECT_SERVER_API_AUTH_STRING was set for the server"
        raise SetupError(f"PREFECT_API_URL={url}", f"the Prefect server {given}", mend)
    if not answer.is_success:
        problem = f"no Prefect server answers there ({answer.status_code} {answer.reason_phrase})"
        missing = "" if url.endswith("/api") else f"Its address ends in /api: PREFECT_API_URL={url.rstrip('/')}/api. "
        raise SetupError(f"PREFECT_API_URL={url}", problem, missing + MEND)
    return url


def _check_home(home: Path) -> None:
    """Where Prefect keeps its own database: without one it would wait two minutes for a server that cannot start."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not os.access(home, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        mend = "Make it writable, or set PREFECT_HOME to a folder that is"
        raise SetupError(str(home), f"Prefect cannot keep its state there ({error.strerror})", mend) from error


def _settings() -> Settings:
    from pydantic import ValidationError

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to create the Prefect home")  # told better by `_check_home`
            from prefect.settings import get_current_settings

            return get_current_settings()
    except ValidationError as error:
        problem = "; ".join(one["msg"] for one in error.errors())
        mend = "Check PREFECT_API_URL and the other variables that begin with PREFECT_"
        raise SetupError("settings of Prefect", problem, mend) from error


def _ask(url: str, settings: Settings) -> httpx.Response:
    """Ask what only someone with the server's password is told; /health answers everybody. Prefect Cloud lacks it."""
    if url.startswith(settings.cloud.api_url):
        return httpx.get(f"{url}/health", timeout=SECONDS)
    secret = settings.api.auth_string
    user, _, password = secret.get_secret_value().partition(":") if secret else ("", "", "")
    return httpx.get(f"{url}/admin/version", timeout=SECONDS, auth=(user, password) if secret else None)
