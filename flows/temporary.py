"""A Prefect server for one run, where none is configured.

    server = Server()
    ...                    # what need not wait for it, such as whether another server is configured
    wait = server.take()   # or server.leave()
    ...
    wait()
    flow()

Prefect would start one by itself, but only when the flow begins, which then waits for it; and it would outlive a run
that is killed. This one gets ready while the flow is imported, and ends with the process that started it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx

from resflow.errors import SetupError
from resflow.processes import die_with_parent

__all__ = ["Server", "bring_database"]

LAID_OUT = Path(sys.prefix) / "prefect" / "prefect.db"
"""An empty database that `make install` lays out: doing that at the first start takes half of its time."""
START_SECONDS = 120.0
"""Where it lays out a database, this takes ten seconds on two quiet cores, a minute on a busy machine."""
STOP_SECONDS = 5.0
GO = "go\n"


class Server:
    """Gets ready beside the import of Prefect here, and waits to be taken, before it touches anything."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:  # who asks too early waits in its queue
            self._url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            descriptor = listening.fileno()
            # a session of its own: Ctrl-C is for the run, which has yet to tell the server how it ended
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(descriptor), str(os.getpid())],
                pass_fds=[descriptor],
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        atexit.register(_stop, self._process)

    def take(self) -> Callable[[], None]:
        """Make it this process's server; the function returned waits until it answers.

        That raises `SetupError` where it does not. The server ends with this process, after Prefect has sent its last
        logs.
        """
        from prefect.context import refresh_global_settings_context
        from prefect.settings import get_current_settings

        bring_database(get_current_settings().home / LAID_OUT.name)
        assert self._process.stdin
        with suppress(BrokenPipeError), self._process.stdin as told:  # it has ended, of which `_wait` tells
            told.write(GO)
        os.environ["PREFECT_API_URL"] = self._url
        refresh_global_settings_context()
        return self._wait

    def leave(self) -> None:
        """Let it end, since another one is configured."""
        assert self._process.stdin
        self._process.stdin.close()

    def _wait(self) -> None:
        try:
            httpx.get(f"{self._url}/health", timeout=START_SECONDS).raise_for_status()
        except httpx.HTTPError as error:
            code = self._process.poll()
            problem = f"it ended with code {code}" if code else f"it does not answer ({error})"
            mend = "`prefect server start` shows why; or name another server in PREFECT_API_URL"
            raise SetupError("Prefect's own server", problem, mend) from error


def bring_database(place: Path) -> None:
    """Put a copy of the empty one where Prefect will look for its own, unless it has one or that fails: it makes it."""
    copy = place.with_name(f"{place.name}.{os.getpid()}")
    with suppress(OSError):  # another first run was faster; or the installation is another user's, and cannot be read
        if not place.exists():
            try:
                shutil.copyfile(LAID_OUT, copy)
                os.link(copy, place)
            finally:
                copy.unlink(missing_ok=True)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(descriptor: int, parent: int) -> None:
    die_with_parent(signal.SIGTERM, parent)
    try:
        with warnings.catch_warnings(action="ignore"):
            import uvicorn
            from prefect.server.api.server import create_app
    except Exception:
        sys.exit(1)  # whoever started this loads the same settings, and tells what is wrong with them
    if sys.stdin.readline() == GO:
        uvicorn.run(create_app(ephemeral=True, final=True), fd=descriptor, log_level="error", lifespan="on")


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
