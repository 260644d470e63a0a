"""The database that a run's own Prefect server begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import temporary


@pytest.fixture
def laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "laid-out.db"
    path.write_bytes(b"tables")
    monkeypatch.setattr(temporary, "LAID_OUT", path)
    return path


def test_a_first_run_gets_the_database_that_was_laid_out_at_installation(tmp_path: Path, laid_out: Path) -> None:
    place = tmp_path / "home" / "prefect.db"
    place.parent.mkdir()
    temporary.bring_database(place)
    assert place.read_bytes() == b"tables"
    assert list(place.parent.iterdir()) == [place]


def test_a_database_that_is_there_stays_as_it_is(tmp_path: Path, laid_out: Path) -> None:
    place = tmp_path / "prefect.db"
    place.write_bytes(b"runs")
    temporary.bring_database(place)
    assert place.read_bytes() == b"runs"


def test_where_it_cannot_be_copied_prefect_makes_its_own(tmp_path: Path, laid_out: Path) -> None:
    """As where the installation is another user's, or the disk is full."""
    laid_out.unlink()
    laid_out.mkdir()
    place = tmp_path / "home" / "prefect.db"
    place.parent.mkdir()
    temporary.bring_database(place)
    assert not list(place.parent.iterdir())


def test_without_one_prefect_makes_its_own(tmp_path: Path, laid_out: Path) -> None:
    laid_out.unlink()
    temporary.bring_database(tmp_path / "prefect.db")
    assert not list(tmp_path.iterdir())
