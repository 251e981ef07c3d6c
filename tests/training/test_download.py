"""Fetching an archive, against a web server on a real socket."""

from __future__ import annotations

import hashlib
import io
import random
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.archive_server import FileServer, serve_file
from training.download import STAGING, Archive, DownloadError, download, extract, require_space

CONTENT = random.Random(0).randbytes(300_000)


def archive(server: FileServer, content: bytes = CONTENT) -> Archive:
    return Archive(server.url, len(content), hashlib.sha256(content).hexdigest())


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_downloads_and_does_not_ask_again(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with serve_file(FileServer(CONTENT)) as server:
        path = download(archive(server), tmp_path / "new", progress=lambda *step: seen.append(step))
        assert path == tmp_path / "new" / "parts.tar.xz"
        assert path.read_bytes() == CONTENT
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        assert download(archive(server), tmp_path / "new") == path
    assert server.asked == [None]
    assert {what for what, _, _ in seen} == {"downloading (MB)", "checking (MB)"}


def test_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    with serve_file(FileServer(CONTENT, break_after=[100_000, 50_000])) as server:
        assert download(archive(server), tmp_path, pause=0).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "parts.tar.xz.partial").write_bytes(CONTENT[:1234])
    with serve_file(FileServer(CONTENT)) as server:
        assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1234-"]


def test_a_server_without_ranges_sends_all_of_it_again(tmp_path: Path) -> None:
    (tmp_path / "parts.tar.xz.partial").write_bytes(b"x" * 5000)
    with serve_file(FileServer(CONTENT, ranges=False)) as server:
        assert download(archive(server), tmp_path).read_bytes() == CONTENT


def test_gives_up_after_attempts_that_bring_nothing_and_keeps_what_it_has(tmp_path: Path) -> None:
    with serve_file(FileServer(CONTENT, break_after=[70_000, *[0] * 9])) as server:
        with pytest.raises(DownloadError, match="70000 of 300000 bytes are kept"):
            download(archive(server), tmp_path, pause=0)
        assert len(server.asked) == 1 + 5
        server.break_after = []
        assert download(archive(server), tmp_path).read_bytes() == CONTENT


def test_without_a_network_it_says_so(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = Archive(f"http://127.0.0.1:{unused.getsockname()[1]}/parts.tar", 10, "0")
        with pytest.raises(DownloadError, match=r"could not be fetched: .*refused.*; 0 of 10 bytes"):
            download(nowhere, tmp_path, pause=0)


def test_a_server_that_does_not_have_it_is_asked_once(tmp_path: Path) -> None:
    with serve_file(FileServer(CONTENT, status=404)) as server, pytest.raises(DownloadError, match="404 Not Found"):
        download(archive(server), tmp_path)
    assert len(server.asked) == 1


def test_other_content_of_the_same_size_is_removed(tmp_path: Path) -> None:
    with serve_file(FileServer(CONTENT[::-1])) as server, pytest.raises(DownloadError, match="something else"):
        download(archive(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_size_is_refused_before_a_byte_is_kept(tmp_path: Path) -> None:
    with serve_file(FileServer(CONTENT[:-1])) as server, pytest.raises(DownloadError, match="299999 bytes"):
        download(archive(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_that_name_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "parts.tar.xz").write_bytes(b"mine")
    with serve_file(FileServer(CONTENT)) as server, pytest.raises(DownloadError, match="remove it"):
        download(archive(server), tmp_path)
    assert (tmp_path / "parts.tar.xz").read_bytes() == b"mine"


def test_no_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="GB free"):
        require_space(tmp_path, 10**18)


def test_extracts_and_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "bottle").mkdir()
    (tmp_path / "bottle" / "mine.txt").write_text("mine")
    path = make_tar(
        tmp_path / "a.tar.xz", (tarfile.TarInfo("bottle/other.txt"), b"other"), (tarfile.TarInfo("pill/1.txt"), b"1")
    )
    assert extract(path, tmp_path) == ["pill"]
    assert (tmp_path / "pill" / "1.txt").read_text() == "1"
    assert [entry.name for entry in (tmp_path / "bottle").iterdir()] == ["mine.txt"]
    assert not list(tmp_path.glob(f"{STAGING}*"))


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "make",
    [
        lambda outside: tarfile.TarInfo("../escaped.txt"),
        lambda outside: tarfile.TarInfo("pill/../../escaped.txt"),
        lambda outside: link("pill/link", str(outside), tarfile.SYMTYPE),
        lambda outside: link("pill/link", "../../escaped.txt", tarfile.LNKTYPE),
        lambda outside: link("device", "", tarfile.CHRTYPE),
    ],
    ids=["up", "up from inside", "absolute link", "hard link", "device"],
)
def test_a_malicious_archive_is_refused_and_leaves_nothing(
    make: Callable[[Path], tarfile.TarInfo], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    harmless = (tarfile.TarInfo("pill/1.txt"), b"1")
    member = make(tmp_path / "escaped.txt")
    path = make_tar(tmp_path / "a.tar.xz", harmless, (member, b"evil" if member.isfile() else b""))
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        extract(path, folder)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "escaped.txt").exists()


def test_an_absolute_path_lands_inside(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = make_tar(tmp_path / "a.tar.xz", (tarfile.TarInfo(f"{tmp_path}/escaped.txt"), b"evil"))
    extract(path, folder)
    assert not (tmp_path / "escaped.txt").exists()


@pytest.mark.parametrize("cut", [100, -5000])
def test_a_broken_archive_is_refused_and_leaves_nothing(cut: int, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = make_tar(tmp_path / "a.tar.xz", (tarfile.TarInfo("pill/1.txt"), CONTENT))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        extract(path, folder)
    assert list(folder.iterdir()) == []
