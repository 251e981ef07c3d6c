"""``plumbline data mvtec``, against a mirror on a real socket."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.support import PROGRAM
from tests.training.archive_server import FileServer, serve_file
from training import mvtec
from training.download import Archive

NAME = mvtec.ARCHIVE.name
ENTRIES = sorted([*mvtec.CATEGORIES, "license.txt"])


def tiny_archive(categories: tuple[str, ...] = mvtec.CATEGORIES) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name in (*(f"{category}/train/good/000.png" for category in categories), "license.txt"):
            tar.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small archive that is taken for the official one."""
    return known(tiny_archive(), monkeypatch)


def known(content: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    url = f"https://nowhere.invalid/{NAME}"
    monkeypatch.setattr(mvtec, "ARCHIVE", Archive(url, len(content), hashlib.sha256(content).hexdigest()))
    return content


def test_fetches_checks_and_unpacks_once(run: Run, content: bytes, tmp_path: Path) -> None:
    arguments = ("data", "mvtec", "--out", tmp_path / "mvtec", "--accept-licence", "--json")
    with serve_file(FileServer(content), NAME) as server:
        outcome = run(*arguments, "--url", server.url)
        assert outcome.status == 0, outcome.errors
        assert outcome.result == {"folder": str(tmp_path / "mvtec"), "added": ENTRIES}
        assert "CC BY-NC-SA 4.0" in outcome.errors
        assert sorted(entry.name for entry in (tmp_path / "mvtec").iterdir()) == ENTRIES
        assert run(*arguments, "--url", server.url).result["added"] == []
    assert server.asked == [None]


def test_keeps_the_archive_where_asked(run: Run, content: bytes, tmp_path: Path) -> None:
    with serve_file(FileServer(content), NAME) as server:
        outcome = run("data", "mvtec", "--out", tmp_path, "--accept-licence", "--url", server.url, "--keep-archive")
    assert outcome.status == 0, outcome.errors
    assert (tmp_path / NAME).read_bytes() == content


def test_nothing_is_fetched_before_the_licence_is_accepted(run: Run, content: bytes, tmp_path: Path) -> None:
    with serve_file(FileServer(content), NAME) as server:
        outcome = run("data", "mvtec", "--out", tmp_path, "--url", server.url, "--json")
    assert outcome.status == 2
    assert "--accept-licence" in outcome.result["error"]
    assert "It may not be used for commercial purposes" in outcome.errors
    assert server.asked == []


def test_a_terminal_is_asked(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, b"n\n")
    process = subprocess.run(
        [PROGRAM, "data", "mvtec", "--out", tmp_path], stdin=theirs, capture_output=True, text=True, check=False
    )
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 2
    assert "Do you accept this licence? [y/N]" in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_a_folder_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run("data", "mvtec", "--out", tmp_path / "file", "--accept-licence")
    outcome.assert_refused(2, f"--out {tmp_path / 'file'}", "is a file")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "mirror/mvtec.tar.xz", "http://localhost", "https://localhost/data/"]
)
def test_an_address_that_is_none_is_refused(url: str, run: Run, tmp_path: Path) -> None:
    run("data", "mvtec", "--out", tmp_path, "--accept-licence", "--url", url).assert_refused(2, url, "http://")


def test_a_mirror_with_something_else_fails(run: Run, content: bytes, tmp_path: Path) -> None:
    with serve_file(FileServer(content[:-1] + b"?"), NAME) as server:
        outcome = run("data", "mvtec", "--out", tmp_path, "--accept-licence", "--url", server.url)
    outcome.assert_refused(1, "SHA-256", server.url)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_lacks_a_category_fails(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = known(tiny_archive(mvtec.CATEGORIES[1:]), monkeypatch)
    with serve_file(FileServer(content), NAME) as server:
        outcome = run("data", "mvtec", "--out", tmp_path, "--accept-licence", "--url", server.url)
    outcome.assert_refused(1, "lacks bottle")
