"""The journal: what was appended is read, in order, whatever happens in between."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from service.records import journal as module
from service.records.journal import Journal, JournalError, JournalInUse

LIMIT = 2**20


def drain(journal: Journal, most: int = 3) -> list[bytes]:
    """Read and commit all there is."""
    lines: list[bytes] = []
    while (batch := journal.read(most)).lines:
        lines += batch.lines
        journal.commit(batch)
    return lines


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def die(journal: Journal) -> None:
    """Let go of it as a killed process does: nothing is tidied up."""
    journal._close_file()
    os.close(journal._held)


def test_lines_come_back_in_order_across_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 50)
    journal = Journal(tmp_path, LIMIT)
    lines = [b"line %d" % number for number in range(100)]
    for line in lines:
        journal.append(line)
    assert len(files(tmp_path)) > 10
    assert journal.depth == 100
    assert drain(journal) == lines
    assert (journal.depth, len(files(tmp_path))) == (0, 1)  # the one that is written to
    journal.append(b"one more")
    assert drain(journal) == [b"one more"]


def test_what_is_not_committed_is_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, LIMIT)
    journal.append(b"a")
    journal.append(b"b")
    assert journal.read(10).lines == journal.read(10).lines == [b"a", b"b"]
    journal.commit(journal.read(1))
    assert journal.read(10).lines == [b"b"]


def test_a_killed_process_leaves_its_lines_to_the_next(tmp_path: Path) -> None:
    killed = Journal(tmp_path, LIMIT)
    for line in (b"a", b"b", b"c"):
        killed.append(line)
    die(killed)
    journal = Journal(tmp_path, LIMIT)
    assert journal.depth == 3
    journal.append(b"d")
    assert drain(journal) == [b"a", b"b", b"c", b"d"]
    journal.close()
    assert files(tmp_path) == []


def test_a_line_that_a_crash_cut_is_passed_over(tmp_path: Path) -> None:
    killed = Journal(tmp_path, LIMIT)
    killed.append(b"whole")
    die(killed)
    with files(tmp_path)[0].open("ab") as file:
        file.write(b"only ha")
    journal = Journal(tmp_path, LIMIT)
    assert journal.depth == 1
    journal.append(b"next")
    assert drain(journal) == [b"whole", b"next"]


def test_the_disk_keeps_what_was_appended_before_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
    journal = Journal(tmp_path, LIMIT)
    journal.sync()
    assert synced == []
    journal.append(b"a")
    journal.sync()
    assert synced == files(tmp_path)
    journal.close()


def test_lines_longer_than_one_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 2**24)
    lines = [bytes([65 + number]) * (3 * 2**20) for number in range(3)]
    for line in lines:
        journal.append(line)
    assert drain(journal) == lines


def test_the_limit_counts_all_files_and_frees_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 50)
    journal = Journal(tmp_path, 100)
    for _ in range(10):
        journal.append(b"123456789")
    with pytest.raises(JournalError, match="full: 100 of 100 bytes"):
        journal.append(b"")
    assert journal.size == sum(path.stat().st_size for path in files(tmp_path)) == 100
    assert len(drain(journal)) == 10
    journal.append(b"")


def test_before_an_image_is_taken_there_must_be_room_for_a_long_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 2 * module._LONG_LINE_BYTES)
    journal.append(b"x" * (module._LONG_LINE_BYTES - 1))
    journal.check()
    journal.append(b"")
    with pytest.raises(JournalError, match="full"):
        journal.check()
    journal.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path, LIMIT)
    with pytest.raises(JournalInUse, match=str(tmp_path)):
        Journal(tmp_path, LIMIT)
    journal.close()
    Journal(tmp_path, LIMIT).close()


def test_a_line_that_the_disk_takes_half_of_is_taken_back(tmp_path: Path) -> None:
    """The limit on a file's size cuts a write just as a full disk does."""
    journal = Journal(tmp_path, LIMIT)
    journal.append(b"a" * 99)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
    try:
        with pytest.raises(JournalError, match="cannot be written"):
            journal.append(b"b" * 99)
        assert files(tmp_path)[0].stat().st_size == 100
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    journal.append(b"c" * 99)
    assert drain(journal) == [b"a" * 99, b"c" * 99]


def test_a_small_journal_is_not_full_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", 1000)
    for _ in range(100):
        journal.append(b"x" * 30)
        drain(journal)
    assert journal.size <= 500
    journal.close()
