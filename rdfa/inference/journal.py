"""Finished videos on the disk, so that a detection that was interrupted goes on where it was.

    crc \t {what made them}
    crc \t key of the batch \t "video id" \t number of detections \t [the entries of the file of results]

Lines are only ever appended, and each carries its checksum: what a kill or a power cut spoiled is the end of the file,
which is cut off and computed again. The entries are the text of the final file, which is put together from them.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from rdfa.errors import UsageError
from rdfa.files import check_place


class Row(NamedTuple):
    """The result of one video: `text` is that of `rdfa.inference.results.entries_text`."""

    video_id: str
    count: int
    text: str


class Journal:
    """The journal at `path`, made if there is none, and locked until the end of the block.

    Args:
        made_with: what results depend on beside the videos: name -> hash or value. A journal of other values is
            refused, since its videos and ours must not be mixed, and somebody's work may be in it.

    Raises:
        UsageError: a journal of something else; another process has it; it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, made_with: Mapping[str, str]):
        self.path = check_place(path)
        self._places: dict[tuple[str, str], tuple[int, int, int]] = {}  # offset and length of the text, detections
        try:
            self._file = open(self.path, "a+b")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}; give another --output") from error
        try:
            self._open(dict(made_with))
        except BaseException:
            self._file.close()
            raise

    def has(self, key: str, video_ids: Collection[str]) -> bool:
        """Whether all videos of a batch are finished."""
        return all((key, video_id) in self._places for video_id in video_ids)

    def append(self, key: str, rows: Iterable[Row]) -> None:
        """Add the videos of a batch; from then on a kill cannot lose them."""
        self._file.seek(0, os.SEEK_END)
        end = self._file.tell()
        lines = []
        for row in rows:
            text = row.text.encode()
            lines.append(_line(f"{key}\t{json.dumps(row.video_id)}\t{row.count}\t".encode() + text))
            end += len(lines[-1])
            self._remember(key, row.video_id, row.count, len(text), end)
        self._file.write(b"".join(lines))
        self._file.flush()

    def rows(self, keys: Iterable[tuple[str, str]]) -> Iterator[Row]:
        """The results of (key of the batch, video id), which must be there."""
        for key, video_id in keys:
            offset, length, count = self._places[key, video_id]
            self._file.seek(offset)
            yield Row(video_id, count, self._file.read(length).decode())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def remove(self) -> None:
        """Delete the file: its content is elsewhere now."""
        self.path.unlink(missing_ok=True)

    def _open(self, made_with: dict[str, str]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{self.path} is in use: another rdfa.detect writes the same --output; wait for it, or name another"
            ) from error
        self._file.seek(0)
        first, own = self._file.readline(), _line(json.dumps(made_with).encode())
        header = _content(first)
        if header is None and not own.startswith(first):
            raise UsageError(f"{self.path} holds no unfinished detections: move it away, or give another --output")
        if first != own and _content(self._file.readline()) is None:  # nothing was finished: nobody misses it
            self._file.truncate(0)
            self._file.write(own)
            self._file.flush()
            return
        if first != own:
            found = json.loads(header)
            names = [name for name in {**found, **made_with} if found.get(name) != made_with.get(name)]
            raise UsageError(
                f"{self.path} holds the unfinished detections of another run (other {', '.join(names)}): finish that "
                "one, delete the file, or give another --output"
            )
        self._read()

    def _read(self) -> None:
        start = self._file.tell()
        for line in self._file:
            content = _content(line)
            if content is None:
                break
            key, video_id, count, text = content.split(b"\t", 3)
            start += len(line)
            self._remember(key.decode(), json.loads(video_id), int(count), len(text), start)
        self._file.truncate(start)

    def _remember(self, key: str, video_id: str, count: int, length: int, end: int) -> None:
        """The text of `length` bytes ends before the line feed at `end`."""
        self._places[key, video_id] = (end - 1 - length, length, count)


def _line(content: bytes) -> bytes:
    return b"%08x\t%b\n" % (zlib.crc32(content), content)


def _content(line: bytes) -> bytes | None:
    """What `_line` was made of; None if it is damaged."""
    content = line[9:-1]
    return content if line == _line(content) else None
