"""Output files that appear under their names only when they are complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from rdfa.errors import RunError, UsageError


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
