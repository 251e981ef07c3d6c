"""The file that ``score_folder`` writes, a line an image, and reads again where it goes on."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .answers import Score

Row = dict[str, Any]

COLUMNS = (
    "file",
    "verdict",
    "image_score",
    "threshold",
    "p_value",
    "regions",
    "category",
    "version",
    "id",
    "error",
)
"""Of a CSV file; ``regions`` is their number."""

_JSONL_BEGIN = b'{"file": '
_CSV_BEGIN = ",".join(COLUMNS).encode()


class Output:
    """Lines of one category's images.

    Args:
        path: ends in .jsonl (a line is ``{"file", "score"}`` or ``{"file", "error"}``) or .csv (COLUMNS).
        category: whose scores it holds.

    Attributes:
        done: the files that it has a line of.

    Raises:
        ValueError: it is of neither kind, or holds something else.
    """

    def __init__(self, path: Path, category: str) -> None:
        kinds = {".jsonl": (_JSONL_BEGIN, _read_jsonl, _write_jsonl), ".csv": (_CSV_BEGIN, _read_csv, _write_csv)}
        if path.suffix.lower() not in kinds:
            raise ValueError(f"{str(path)!r} is no kind of output; its name must end in {' or '.join(kinds)}")
        begin, read, self._write = kinds[path.suffix.lower()]
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not content.startswith(begin[: len(content)]):
            raise _foreign(path)
        self.done: set[str] = set()
        for file, held in _rows(path, whole, read):
            if held not in (None, "", category):
                raise ValueError(f"{path} holds scores of category {held!r}, not {category!r}; name another file")
            self.done.add(file)
        if whole != content:  # what a run wrote last may have no end, where the machine was switched off
            os.truncate(path, len(whole))
        self._file = path.open("a", encoding="utf-8", newline="")
        if self._write is _write_csv and path.stat().st_size == 0:
            csv.writer(self._file).writerow(COLUMNS)

    def add(self, file: str, score: Score | None, error: str | None) -> None:
        """Write the line of a file; it is in the system's hands when this returns."""
        self._write(self._file, file, score, error)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows(
    path: Path, content: bytes, read: Callable[[IO[str]], Iterator[tuple[str, str | None]]]
) -> Iterator[tuple[str, str | None]]:
    try:
        yield from read(io.StringIO(content.decode(), newline=""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _foreign(path) from error


def _foreign(path: Path) -> ValueError:
    return ValueError(f"{path} was not written by this program; name another file")


def _read_jsonl(file: IO[str]) -> Iterator[tuple[str, str | None]]:
    for line in file:
        row = json.loads(line)
        yield row["file"], row.get("score", {}).get("category")


def _write_jsonl(file: IO[str], name: str, score: Score | None, error: str | None) -> None:
    row: Row = {"file": name}
    if score is not None:
        row["score"] = score.model_dump(mode="json", exclude_none=True)
    else:
        row["error"] = error
    file.write(json.dumps(row) + os.linesep)


def _read_csv(file: IO[str]) -> Iterator[tuple[str, str | None]]:
    for row in csv.DictReader(file):
        yield row["file"], row["category"]


def _write_csv(file: IO[str], name: str, score: Score | None, error: str | None) -> None:
    row: Row = {"file": name, "error": error}
    if score is not None:
        row |= score.model_dump(mode="json", include={"verdict", "image_score", "threshold", "p_value"})
        row |= score.model_dump(mode="json", include={"category", "version", "id"})
        row["regions"] = len(score.regions)
    csv.DictWriter(file, COLUMNS).writerow(row)
