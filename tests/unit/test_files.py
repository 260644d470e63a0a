"""Files appear whole or not at all, and the same content is the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from resflow.errors import SetupError
from resflow.files import csv_bytes, json_bytes, write, write_together


def test_a_file_replaces_its_predecessor(tmp_path: Path) -> None:
    write(tmp_path / "new" / "a.txt", b"one")
    write(tmp_path / "new" / "a.txt", b"two")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_one_failure_leaves_all_files_as_they_were(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    write(tmp_path / "a", b"old")
    with pytest.raises(SetupError, match=r"b: cannot be written: No space left.*Free disk space"):
        write_together({tmp_path / "a": lambda file: file.write(b"new"), tmp_path / "b": fail})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_json_is_rounded_readable_and_ends_with_a_newline() -> None:
    content = json_bytes({"ece": 0.12345678, "rows": [1, (0.5, None)], "name": "é"})
    assert json.loads(content) == {"ece": 0.123457, "rows": [1, [0.5, None]], "name": "é"}
    assert content.endswith(b"}\n")
    assert "é".encode() in content


def test_small_numbers_keep_their_digits() -> None:
    """A learning rate of 1e-5 falls to far less."""
    rates = [1e-5, 4.512345678e-7, -2.72e-10, 0.0, 1234.56789]
    assert json.loads(json_bytes(rates)) == [1e-5, 4.51235e-7, -2.72e-10, 0.0, 1234.56789]


def test_json_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"loss": float("nan")})


def test_csv_has_a_header_rounded_floats_and_unix_line_ends() -> None:
    assert csv_bytes(("epoch", "loss"), [(1, 0.12345678), (2, 0.5)]) == b"epoch,loss\n1,0.123457\n2,0.5\n"


def test_a_user_without_a_home_is_told_to_set_one() -> None:
    given = {name: value for name, value in os.environ.items() if name != "HOME"}
    stranger = ["setpriv", "--ruid=4321"]  # whose home is asked for; what may be read stays the same
    if subprocess.run([*stranger, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to be another user (root)")
    ask = [sys.executable, "-c", "from resflow.files import home; home()"]
    said = subprocess.run([*stranger, *ask], env=given, capture_output=True, text=True, check=False).stderr
    mend = "Set HOME to a folder that can be written to"
    assert said.splitlines()[-1].endswith(f"SetupError: HOME: is not set, and user 4321 has no home by itself. {mend}")
