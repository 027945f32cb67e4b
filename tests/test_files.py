"""A file is whole or not there, and a name stays inside its folder."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from diffplan.files import (
    atomic_path,
    claim,
    explained_write_errors,
    inside,
    nan_to_none,
    read_json,
    sha256,
    write_json,
)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    target = tmp_path / "note.txt"
    target.write_text("old")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise KeyError("the writer failed")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    """Seeds, counts and options often come out of numpy."""
    settings = {"seed": np.int64(3), "rate": np.float32(0.5), "safe": np.bool_(True)}
    write_json(tmp_path / "note.json", settings)
    assert read_json(tmp_path / "note.json") == {"seed": 3, "rate": 0.5, "safe": True}
    claim(tmp_path / "run", settings)
    claim(tmp_path / "run", {"seed": 3, "rate": 0.5, "safe": True})
    with pytest.raises(TypeError, match="of type ndarray cannot be written as JSON"):
        write_json(tmp_path / "note.json", np.zeros(2))


def test_a_full_disk_leaves_the_old_file_whole_and_says_what_to_do(tmp_path):
    write_json(tmp_path / "note.json", ["old"])
    code = f"""
import resource
from diffplan.files import explained_write_errors, write_json
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_json({str(tmp_path / "note.json")!r}, ["new"] * 1000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert f"cannot write {tmp_path / 'note.json'} (File too large)" in last and "free some space" in last
    assert read_json(tmp_path / "note.json") == ["old"]
    assert os.listdir(tmp_path) == ["note.json"]


def test_json_that_is_damaged_is_named_with_its_line(tmp_path):
    (tmp_path / "note.json").write_text('{"a": 1,\n "b": }')
    with pytest.raises(ValueError, match=r"note\.json is not valid JSON .*line 2"):
        read_json(tmp_path / "note.json")
    (tmp_path / "note.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"note\.json is not valid JSON"):
        read_json(tmp_path / "note.json")
    (tmp_path / "note.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"note\.json is not valid JSON"):
        read_json(tmp_path / "note.json")


def test_json_never_holds_a_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "note.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []
    write_json(tmp_path / "note.json", {"loss": 0.1})
    assert json.loads((tmp_path / "note.json").read_text()) == {"loss": 0.1}


def test_only_numbers_that_are_nan_become_null():
    assert nan_to_none({"NaN": ["NaN", float("nan"), (1.0, {"a": float("nan")})]}) == {
        "NaN": ["NaN", None, [1.0, {"a": None}]]
    }


def test_a_folder_goes_on_only_with_the_settings_that_it_was_made_with(tmp_path):
    claim(tmp_path / "run", {"steps": 10, "size": (3, 4)})
    claim(tmp_path / "run", {"steps": 10, "size": (3, 4)})
    with pytest.raises(ValueError, match=r"run is of other settings, \{'steps': 10\} instead of \{'steps': 20\}"):
        claim(tmp_path / "run", {"steps": 20, "size": (3, 4)})
    assert read_json(tmp_path / "run" / "settings.json")["steps"] == 10
    (tmp_path / "run" / "settings.json").write_text("[10]")
    with pytest.raises(
        ValueError, match=r"run is of other settings, \{'steps': 'nothing'\} instead of \{'steps': None\}"
    ):
        claim(tmp_path / "run", {"steps": None})


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "note").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "note") == hashlib.sha256(b"abc" * 100_000).hexdigest()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/passwd", ".", "", "link/outside"])
def test_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leaves its folder"):
        inside(folder, name)
    assert inside(folder, "a/b.npy") == folder / "a" / "b.npy"


def test_a_write_that_fails_is_explained_once(tmp_path):
    outer, inner = (explained_write_errors(tmp_path / name) for name in ("outer", "inner"))
    with pytest.raises(OSError, match="cannot write") as caught, outer, inner:
        raise OSError(28, "No space left on device")
    assert str(caught.value).count("cannot write") == 1 and "inner" in str(caught.value)
    assert caught.value.errno == 28
