"""The head of a Ray cluster without nodes, and whether processes have ended."""

from __future__ import annotations

import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.processes import START_SECONDS, end
from resflow import ports


@contextmanager
def head(folder: Path) -> Iterator[int]:
    """The port of Ray's own process that answers for a cluster, alone: it is there at once, and nothing can run."""
    import ray

    (port,) = ports.find_free(1)
    command = [Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server", f"--gcs_server_port={port}"]
    nothing = b64encode(b"{}").decode()
    command += [f"--log_dir={folder}", "--node-ip-address=127.0.0.1", "--session-name=x", f"--config_list={nothing}"]
    with (folder / "gcs.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, (folder / "gcs.log").read_text()
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline, "the head does not listen"
            time.sleep(0.05)
        yield port
    finally:
        end(process)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float) -> bool:
    """Whether a process ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
