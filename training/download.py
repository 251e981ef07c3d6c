"""Fetching an archive whose size and SHA-256 are known: resumably, checked, and unpacked without trusting it."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

Progress = Callable[[str, int, int], None]

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60  # without a byte
ATTEMPTS = 5  # in a row that bring nothing, before the download is given up
STAGING = ".extracting-"


class DownloadError(OSError):
    """The archive could not be had; the message says why, and what is kept."""


@dataclass(frozen=True)
class Archive:
    """A file somewhere else, of ``size`` bytes and with a known SHA-256."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


def download(archive: Archive, folder: Path, *, progress: Progress | None = None, pause: float = 1.0) -> Path:
    """Fetch ``archive`` into ``folder`` and check it; what an interrupted download left is gone on with.

    Args:
        archive: what to fetch.
        folder: where it is put, made if missing; ``<name>.partial`` there holds what has arrived so far.
        progress: told "downloading (MB)" or "checking (MB)", how much is done, of how much.
        pause: seconds before the second attempt after a broken connection; doubled for each further one.

    Returns:
        The file's path.

    Raises:
        DownloadError: no connection, a server that does not have it, no space, or another content than expected. A
            partial file is kept, except where its content is wrong.
    """
    target = folder / archive.name
    if target.exists():
        if not _is_right(target, archive, progress):
            raise DownloadError(f"{target} is there but is not the archive expected of {archive.url}; remove it")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{archive.name}.partial"
    arrived = partial.stat().st_size if partial.exists() else 0
    require_space(folder, archive.size - arrived)
    failures = 0
    while arrived < archive.size:
        try:
            _continue(archive, partial, progress)
            reason = "the connection was closed early"
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{archive.url}: the server answered {error.code} {error.reason}") from error
        except DownloadError:
            raise
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        before, arrived = arrived, partial.stat().st_size if partial.exists() else 0
        failures = 0 if arrived > before else failures + 1
        if failures == ATTEMPTS:
            raise DownloadError(
                f"{archive.url} could not be fetched: {reason}; {arrived} of {archive.size} bytes are kept in "
                f"{partial}: run the same command again to go on"
            )
        if arrived < archive.size:
            time.sleep(pause * 2**failures)
    if not _is_right(partial, archive, progress):
        partial.unlink()
        raise DownloadError(
            f"{archive.url} sent something else than the archive of {archive.size} bytes with SHA-256 "
            f"{archive.sha256}; it was removed"
        )
    partial.replace(target)
    return target


def extract(archive: Path, folder: Path, *, progress: Progress | None = None) -> list[str]:
    """Unpack a tar archive beside what is there; nothing in it can reach outside ``folder``.

    All of it is unpacked into a folder of its own first, so that an interrupted or refused archive leaves nothing.

    Args:
        archive: a tar file, compressed or not.
        folder: where its top-level entries are put; those that are there already are kept as they are.
        progress: told "extracting (MB)", how much of the archive has been read, of how much.

    Returns:
        The names of the entries that were put there.

    Raises:
        DownloadError: the archive is broken, or holds something that must not be unpacked (a path or a link that
            leads outside, a device).
    """
    for left in folder.glob(f"{STAGING}*"):
        shutil.rmtree(left)
    size = archive.stat().st_size
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=folder) as name:
        staging = Path(name)
        try:
            with archive.open("rb") as raw, tarfile.open(fileobj=raw) as tar:
                for member in tar:
                    tar.extract(member, staging, filter="data")
                    if progress is not None:
                        progress("extracting (MB)", raw.tell() // CHUNK, size // CHUNK)
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise DownloadError(f"{archive} cannot be unpacked: {error}; nothing of it was kept") from error
        added = sorted(entry.name for entry in staging.iterdir() if not (folder / entry.name).exists())
        for entry in added:
            (staging / entry).rename(folder / entry)
    return added


def require_space(folder: Path, size: int) -> None:
    """Raise a DownloadError where ``folder`` has no room for ``size`` more bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DownloadError(f"{folder} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} GB are needed")


def _continue(archive: Archive, partial: Path, progress: Progress | None) -> None:
    """Ask for what is missing and append it, until it is all there or the connection ends."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server knows no ranges and sends all of it
        length = response.headers["Content-Length"]
        if length is not None and start + int(length) != archive.size:
            raise DownloadError(
                f"{archive.url} is a file of {start + int(length)} bytes, the archive has {archive.size}; "
                "name a mirror that has it"
            )
        with partial.open("r+b" if start else "wb") as file:
            file.seek(start)
            while start < archive.size and (chunk := response.read(CHUNK)):
                file.write(chunk)
                start += len(chunk)
                if progress is not None:
                    progress("downloading (MB)", start // CHUNK, archive.size // CHUNK)


def _is_right(path: Path, archive: Archive, progress: Progress | None) -> bool:
    size = path.stat().st_size
    if size != archive.size:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress("checking (MB)", file.tell() // CHUNK, size // CHUNK)
    return digest.hexdigest() == archive.sha256
