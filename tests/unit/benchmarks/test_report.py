"""The page of benchmarks: parts that replace each other under one head."""

from __future__ import annotations

from benchmarks import report


def test_a_part_takes_its_predecessors_place_and_an_older_head_is_renewed(tmp_path, monkeypatch):
    page = tmp_path / "benchmarks.md"
    monkeypatch.setattr(report, "PAGE", page)
    report.record("One", "first", "old\n")
    assert page.read_text().startswith(report.HEAD)
    page.write_text(page.read_text().replace(report.HEAD, "# Benchmarks\n\nAn older head.\n"))
    report.record("One and two", "second", "two\n")
    report.record("One", "first", "new\n")
    head, *parts = page.read_text().split("\n## ")
    assert head == report.HEAD
    assert [part.partition("\n")[0] for part in parts] == ["One", "One and two"]
    assert "old" not in page.read_text()
    assert page.read_text().endswith("\n\ntwo\n")
    assert "\n\nnew\n\n## One and two\n" in page.read_text()
