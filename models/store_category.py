"""The folder of one category in a model store: where its parts lie, no symbolic link followed, one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.artifact import ArtifactError, sync_folder
from models.store_errors import StoreError, StoreReadOnly
from models.store_files import NAME, numbers_in, read_pointer, write_file

ACTIVE, SHADOW = "active", "shadow"
"""The pointers: files that hold a version's number."""

ADVICE = {ACTIVE: "activate", SHADOW: "choose as shadow"}
"""What mends each, before "a version"."""


class CategoryFolder:
    """A category's folder, whether it is there or not. What writes is for the holder of ``lock`` alone.

    Args:
        root: the store's folder; it may be a symbolic link, nothing below it.
        category: a name that a category may have.

    Attributes:
        path: the folder.
        versions: of it, that of the artifacts.
        staging: of that, the one where a version is written.
        history: the file of activations.
    """

    def __init__(self, root: Path, category: str) -> None:
        self._root = root
        self.path = root / category
        self.versions = self.path / "versions"
        self.staging = self.versions / ".staging"
        self.history = self.path / "activations.json"

    def version(self, version: int) -> Path:
        """The artifact of a version."""
        return self.versions / str(version)

    def records(self, version: int) -> Path:
        """The folder of what was recorded about a version."""
        return self.path / "records" / str(version)

    def record(self, version: int, name: str) -> Path:
        """The file of one such record."""
        return self.records(version) / f"{name}.json"

    def record_paths(self, version: int) -> list[Path]:
        """The records that are there, sorted: plain files, since of all else a reader sees nothing."""
        folder = self.records(version)
        if not self._is_own(folder):
            return []
        paths = (path for path in sorted(folder.glob("*.json")) if NAME.fullmatch(path.stem))
        return [path for path in paths if path.is_file() and not path.is_symlink()]

    def published(self) -> list[int]:
        """The versions that are there, ascending."""
        if not self._is_own(self.versions):
            return []
        return sorted(number for number in numbers_in(self.versions) if self._is_own(self.version(number)))

    def next_version(self) -> int:
        """A number that nothing is left of."""
        # A version deleted by hand leaves records and the pointer: given again, its number would inherit both.
        taken = numbers_in(self.versions) | numbers_in(self.path / "records")
        with suppress(ArtifactError):  # a damaged pointer is no reason not to publish
            taken.add(self.pointer(ACTIVE) or 0)
        return max(taken, default=0) + 1

    def pointer(self, name: str) -> int | None:
        """The version that a pointer names, there or gone; None where there is no pointer.

        Raises:
            ArtifactError: the pointer is damaged.
        """
        return read_pointer(self.path / name, f"{ADVICE[name]} a version")

    def point(self, name: str, version: int | None) -> None:
        """Let a pointer name a version, or take it away."""
        path = self.path / name
        if version is None:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
        else:
            write_file(path, f"{version}\n")

    def write_record(self, version: int, name: str, text: str) -> Path:
        """Put a record in its place."""
        path = self.record(version, name)
        self.make(path.parent)
        write_file(path, text)
        return path

    def make(self, folder: Path) -> None:
        """Create a folder of the store and those above it, each on the disk before the next.

        Raises:
            StoreError: a link or a file is in the way.
        """
        if links := self._links(folder):
            raise StoreError(f"{links[0]} is a symbolic link, which the store does not follow; put a folder there")
        for step in reversed([folder, *folder.parents]):
            if not step.is_dir():
                try:
                    step.mkdir(exist_ok=True)
                except FileExistsError as error:
                    raise StoreError(f"{step} is a file where the store needs a folder; move it away") from error
                sync_folder(step.parent)

    def check_writable(self) -> None:
        """See that this process may write here.

        Raises:
            StoreReadOnly: it may not.
        """
        if not os.access(self.path, os.W_OK):
            raise self._read_only()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait for whoever writes here, and keep others waiting.

        Raises:
            StoreReadOnly: as ``check_writable``.
        """
        self.check_writable()
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise self._read_only() from error
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _is_own(self, folder: Path) -> bool:
        """Whether a folder below the root exists, with no symbolic link on the way to it."""
        return folder.is_dir() and not self._links(folder)

    def _links(self, folder: Path) -> list[Path]:
        steps = [folder, *folder.parents]
        return [step for step in steps[: steps.index(self._root)] if step.is_symlink()]

    def _read_only(self) -> StoreReadOnly:
        return StoreReadOnly(f"this process may not write to {self.path}; do it as a user, on a machine, that may")
