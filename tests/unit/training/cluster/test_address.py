"""RAY_ADDRESS: what is refused at once, before Ray is asked, which answers with a traceback or after minutes."""

from __future__ import annotations

import re
import socket
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from resflow.errors import TrainingError
from resflow.training.cluster import address
from resflow.training.cluster.address import check_address

NO_HEAD = "what listens there does not answer as the head of a Ray cluster does. Name the port that `ray start --head`"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USE_TLS", raising=False)


@pytest.mark.parametrize(
    "named",
    [
        "127.0.0.1",
        "127.0.0.1:",
        ":6379",
        "127.0.0.1:port",
        "127.0.0.1:99999",
        "127.0.0.1:6379/path",
        "http://127.0.0.1:6379",
        "ray://127.0.0.1:10001",  # needs Ray Client, which is not installed
        "::1:6379",
    ],
)
def test_what_is_no_address_of_a_cluster_is_told_with_those_that_are(named: str) -> None:
    told = f"RAY_ADDRESS={named}: is not HOST:PORT, auto or local. Write it like 10.0.0.5:6379"
    with pytest.raises(TrainingError, match=f"^{re.escape(told)}"):
        check_address(named)


def test_what_answers_in_another_language_is_no_head() -> None:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        named = f"127.0.0.1:{server.server_port}"
        with pytest.raises(TrainingError, match=f"^RAY_ADDRESS={named}: {NO_HEAD}"):
            check_address(named)


def test_what_listens_and_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        named = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TrainingError, match=f"^RAY_ADDRESS={named}: {NO_HEAD}"):
            check_address(named)


@pytest.mark.parametrize("wanted", ["1", "true", "True"])
def test_what_is_spoken_within_tls_is_left_to_ray(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("RAY_USE_TLS", wanted)
    with socket.create_server(("127.0.0.1", 0)) as head:
        check_address(f"127.0.0.1:{head.getsockname()[1]}")


@pytest.mark.parametrize("named", ["auto", "local"])
def test_what_ray_finds_by_itself_is_left_to_it(named: str) -> None:
    check_address(named)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "nowhere.invalid"])
def test_a_head_that_does_not_listen_is_one_error(host: str) -> None:
    with pytest.raises(TrainingError, match=f"^{re.escape(f'RAY_ADDRESS={host}:1: nothing answers there (')}"):
        check_address(f"{host}:1")
