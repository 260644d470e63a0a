"""Is there a Prefect server where there should be one? Asked before a flow starts: Prefect itself would wait long."""

from __future__ import annotations

import httpx

from resflow.errors import SetupError

__all__ = ["check"]


def check(needed: bool) -> str | None:
    """The address of the configured server, which answers; None where none is configured. Raises `SetupError`.

    Where one is `needed`, that none is configured is an error too.
    """
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:
        if needed:
            mend = "Start one with `prefect server start`, then set PREFECT_API_URL=http://127.0.0.1:4200/api"
            raise SetupError("PREFECT_API_URL", "is not set, and a schedule needs a Prefect server", mend)
        return None
    try:
        httpx.get(f"{url}/health", timeout=3).raise_for_status()
    except httpx.HTTPError as error:
        problem = f"no Prefect server answers there ({error})"
        mend = "Start it with `prefect server start`; or unset PREFECT_API_URL to run without one"
        raise SetupError(f"PREFECT_API_URL={url}", problem, mend) from error
    return url
