"""Input files read whole, and output files and folders that appear under their names only when they are complete."""

import contextlib
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rdfa.errors import RunError, UsageError

GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: str | os.PathLike, remedy: str = "check the path") -> bytes:
    """The content of a file, decompressed if it is a gzip file, whatever its name says.

    Raises:
        UsageError: it cannot be opened; says `remedy`. RunError: a damaged gzip file.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    try:
        return gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
    except (OSError, EOFError, zlib.error) as error:
        raise RunError(f"{path}: truncated or damaged gzip file ({error}): fetch it again") from error


def parse_json(path: str | os.PathLike, data: bytes | str) -> Any:
    """The content of `data`, which is the JSON of the file `path`; raises RunError if it is not."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: a wrong encoding too
        raise RunError(f"{path} is not valid JSON ({error}): copy it again, or give another file") from error


def read_json_lines(path: str | os.PathLike) -> list[Any]:
    """The values of a file of JSON lines; the end of one that was being written is left out.

    Raises:
        UsageError: it cannot be opened. RunError: a line is damaged.
    """
    return [parse_json(path, line) for line in read_bytes(path).split(b"\n")[:-1]]


def check_place(path: str | os.PathLike) -> Path:
    """`path` with its folder made. Called before long work, so that a place that cannot be written is told first.

    Raises:
        UsageError: a folder, a device, or a file in a folder that cannot be made or written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {path}: it is a folder or a device; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give a file in a folder of yours") from error
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: its folder is closed to you; give a file in a folder of yours")
    return path


@contextlib.contextmanager
def folder_for(name: str, folder: Path) -> Iterator[None]:
    """`folder`, where a file `name` is to be: checked and made before long work, and gone again if nothing came of it.

    Raises:
        UsageError: as `check_place`.
    """
    check_place(folder / name)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only an empty one


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`, whose file takes the place of `path` when the block succeeds, or else vanishes.

    Raises:
        UsageError: as `check_place`.
        RunError: writing failed, as on a full disk.
    """
    path = check_place(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; make room, or name another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(path: Path, is_ours: Callable[[Path], bool], kind: str) -> None:
    """Raises UsageError unless the folder `path` is absent, empty, or by `is_ours` one that may be replaced.

    Args:
        kind: what such a folder is called, with its article.
    """
    if path.is_dir() and (is_ours(path) or not any(path.iterdir())):
        return
    if path.exists():
        raise UsageError(f"{path} exists and is not {kind}: name another folder, or remove it")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its place when the block succeeds, and vanishes when it fails.

    Raises:
        UsageError: the folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {path}: {error.strerror}; give a folder of yours") from error
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        directory = Path(scratch) / "new"
        directory.mkdir()
        yield directory
        if path.exists():
            os.replace(path, Path(scratch) / "old")
        os.replace(directory, path)
