"""Output files: whole or absent, and refused before the work where they cannot be written."""

import os

import pytest

from rdfa.errors import RunError, UsageError
from rdfa.files import check_place, replacing


def test_a_file_appears_when_the_block_ends_and_its_folder_with_it(tmp_path):
    path = tmp_path / "new" / "a.json"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["a.json"]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (OSError(28, "No space left on device"), RunError, "a.json: No space left on device; make room, or name"),
        (OSError("800 requested and 0 written"), RunError, "a.json: 800 requested and 0 written; make room, or name"),
    ],
)
def test_a_failure_leaves_what_was_there(tmp_path, error, raised, message):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(raised, match=message), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.json"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path, "folder or a device"),
        (os.devnull, "folder or a device"),
        (tmp_path / "file" / "a", "Not a directory|File exists"),
    ):
        with pytest.raises(UsageError, match=f"cannot write {path}: .*({reason}).*give "):
            check_place(path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="all folders are open to root")
def test_closed_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="its folder is closed to you"):
        check_place(tmp_path / "a")
    tmp_path.chmod(0o700)
