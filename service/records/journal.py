"""The journal: records on their way to the database, in files of lines that outlive the process.

``append`` is one ``write()`` into the page cache: it survives the process being killed at any moment, and a power cut
only after ``sync``. Whoever moves the lines on calls ``read`` and ``commit``; a file is deleted once all its lines were
committed. A crash between the two has some lines read twice, so moving them must be idempotent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

_SEGMENT = re.compile(r"(\d{12})\.jsonl")
_SEGMENT_BYTES = 4 * 2**20  # at most; of a small journal a quarter, for a file is deleted only when it is done with
_LONG_LINE_BYTES = 64 * 2**10  # a record with very many regions
_READ_BYTES = 2**20


class JournalError(Exception):
    """The journal cannot take a line; the message says why."""


class JournalInUse(Exception):
    """Another process has the journal."""


@dataclass
class _Segment:
    path: Path
    size: int


@dataclass(frozen=True)
class Lines:
    """The oldest lines that are not committed; ``commit`` takes it back."""

    lines: list[bytes]
    end: int
    passed: int


class Journal:
    """One process's journal.

    Appending is for any thread; reading and committing for one thread at a time.

    Args:
        folder: made if need be; its own.
        limit: bytes of all its files; what an earlier process left counts.

    Raises:
        JournalInUse: another process has it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._limit = limit
        self._segment_bytes = min(_SEGMENT_BYTES, limit // 4)
        self._lock = threading.Lock()
        self._held = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._held)
            raise JournalInUse(f"{folder} is in use by another process") from error
        left = sorted(path for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))
        self._segments = deque(_Segment(path, path.stat().st_size) for path in left)
        self._total = sum(segment.size for segment in self._segments)
        self._number = int(left[-1].stem) if left else 0
        self._file: int | None = None  # of the last segment, where it is one of this process
        self._read_to = 0  # of the first segment, committed
        self.appended = sum(path.read_bytes().count(b"\n") for path in left)
        self.committed = 0

    @property
    def depth(self) -> int:
        """Lines that are not committed."""
        return self.appended - self.committed

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self._total

    def check(self) -> None:
        """See that there is room for another line, even a long one.

        Raises:
            JournalError: there may be none.
        """
        if self._total + _LONG_LINE_BYTES > self._limit:
            raise self._full()

    def append(self, line: bytes) -> None:
        """Add a line, which holds no line break.

        Raises:
            JournalError: it was not added: the limit is reached, or the disk did not take it.
        """
        data = line + b"\n"
        with self._lock:
            if self._total + len(data) > self._limit:
                raise self._full()
            try:
                descriptor = self._writable()
                segment = self._segments[-1]
                written = os.write(descriptor, data)
                if written < len(data):
                    os.ftruncate(descriptor, segment.size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise JournalError(f"the journal cannot be written: {error.strerror}") from error
            segment.size += len(data)
            self._total += len(data)
            self.appended += 1

    def read(self, most: int) -> Lines:
        """The oldest lines that are not committed, at most so many; none where there are none."""
        while True:
            with self._lock:
                if not self._segments:
                    return Lines([], 0, 0)
                first, begin = self._segments[0], self._read_to
                end, last = first.size, len(self._segments) == 1 and self._file is not None
            data = _read(first.path, begin, end)
            # What follows the last line break was cut by a crash: it was never answered for.
            lines = data.split(b"\n")[:-1][:most]
            if lines or last:
                return Lines(lines, begin + sum(len(line) + 1 for line in lines), len(lines))
            self._drop_first()

    def commit(self, lines: Lines) -> None:
        """Forget lines that ``read`` gave."""
        with self._lock:
            self._read_to = lines.end
            self.committed += lines.passed
            first = self._segments[0]
            done = self._read_to == first.size
            if not done or (len(self._segments) == 1 and self._file is not None and first.size < self._segment_bytes):
                return
            if len(self._segments) == 1:
                self._close_file()
        self._drop_first()

    def sync(self) -> None:
        """Have the disk keep what was appended, whatever happens to the power."""
        with self._lock:
            descriptor = None if self._file is None else os.dup(self._file)
        if descriptor is not None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Let go of the files; what is not committed stays for the next process."""
        with self._lock:
            if self.depth == 0:
                for segment in self._segments:
                    segment.path.unlink(missing_ok=True)
            self._close_file()
            os.close(self._held)

    def _full(self) -> JournalError:
        return JournalError(f"the journal is full: {self._total} of {self._limit} bytes wait for the database")

    def _writable(self) -> int:
        if self._file is not None and self._segments[-1].size >= self._segment_bytes:
            self._close_file()
        if self._file is None:
            path = self._folder / f"{self._number + 1:012}.jsonl"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o644)
            self._number += 1
            self._segments.append(_Segment(path, 0))
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _drop_first(self) -> None:
        with self._lock:
            segment = self._segments.popleft()
            self._read_to = 0
            self._total -= segment.size
        segment.path.unlink(missing_ok=True)


def _read(path: Path, begin: int, end: int) -> bytes:
    """A piece of a file that holds a whole line, if there is one before ``end``."""
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        data = b""
        while begin + len(data) < end and b"\n" not in data:
            piece = file.read(min(_READ_BYTES, end - begin - len(data)))
            if not piece:  # somebody else cut the file
                break
            data += piece
    return data
