"""Where trained detectors are kept: numbered, immutable versions of each category, and which of them is active.

    root/<category>/versions/<number>/      one artifact each, its files read-only
    root/<category>/versions/.staging/      the version being written
    root/<category>/active                  the number of the active version
    root/<category>/shadow                  the number of the version that scores beside it, if there is one
    root/<category>/activations.json        which version became active, when, and by whom
    root/<category>/records/<number>/       JSON files about a version that came later than it: metrics, thresholds
    root/<category>/.lock                   held by the one process that writes to the category

Readers take no lock: a version appears by a rename and the pointer moves by a rename, so whatever is there is whole.
The system frees the lock of a process that dies, so whoever holds it knows a staging folder it finds to be abandoned.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.activations import Activation, previous, read_activations, rendered, system_user
from models.artifact import ArtifactError, sync_folder, sync_tree, verify
from models.store_files import (
    NAME,
    make_read_only,
    numbers_in,
    read_pointer,
    read_record,
    record_text,
    remove,
    write_file,
)

_STAGING = ".staging"
_ACTIVE, _SHADOW = "active", "shadow"
_ADVICE = {_ACTIVE: "activate", _SHADOW: "choose as shadow"}


class StoreError(Exception):
    """A request that the store cannot meet."""


class StoreNotFound(StoreError):
    """There is no folder at the store's root."""


class StoreReadOnly(StoreError):
    """This process may not write to the category."""


class InvalidCategoryName(StoreError, ValueError):
    """The name cannot be that of a category, whatever the store holds."""


class UnknownCategory(StoreError, LookupError):
    """The store holds no version of the category."""

    def __init__(self, category: str, known: Collection[str]) -> None:
        self.category = category
        self.known = sorted(known)
        super().__init__(f"no category {category!r}; there is {', '.join(self.known) or 'none yet'}")


class UnknownVersion(StoreError, LookupError):
    """The category has no such version."""

    def __init__(self, category: str, version: int, known: Collection[int]) -> None:
        self.category = category
        self.version = version
        self.known = sorted(known)
        super().__init__(f"category {category!r} has no version {version}; there is {', '.join(map(str, self.known))}")


class RecordExists(StoreError):
    """A record that is written once is there already."""


def check_category_name(category: str) -> None:
    """Raise InvalidCategoryName for a name that no category may have, before any work is spent on it."""
    if not NAME.fullmatch(category):
        raise InvalidCategoryName(
            f"{category!r} is no category name: use 1 to 64 of a-z, A-Z, 0-9, '-' and '_', a letter or digit first"
        )


class ModelStore:
    """The versions of every category under one folder.

    Symbolic links under the root are not followed; the root itself may be one. Every method that takes a category
    raises InvalidCategoryName; every method that reads raises StoreNotFound, UnknownCategory and UnknownVersion.

    Args:
        root: the folder; the first ``publish`` creates it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def categories(self) -> list[str]:
        """The categories that have at least one version, sorted."""
        if not self.root.is_dir():
            raise StoreNotFound(f"there is no model store at {self.root}; name the folder that models are published to")
        names = [entry.name for entry in self.root.iterdir() if NAME.fullmatch(entry.name)]
        return sorted(name for name in names if self._published(name))

    def versions(self, category: str) -> list[int]:
        """The versions of a category, ascending."""
        check_category_name(category)
        versions = self._published(category)
        if not versions:
            raise UnknownCategory(category, self.categories())
        return versions

    def active(self, category: str) -> int | None:
        """The active version of a category; None where none was ever activated.

        Raises:
            ArtifactError: the pointer is damaged, or names a version that is gone.
        """
        return self._named(category, _ACTIVE)

    def shadow(self, category: str) -> int | None:
        """The version that scores beside the active one and only records; None where there is none.

        Raises:
            ArtifactError: as ``active``.
        """
        return self._named(category, _SHADOW)

    def activations(self, category: str) -> list[Activation]:
        """Which version became active when, the latest last.

        Raises:
            ArtifactError: the history is damaged.
        """
        self.versions(category)
        return read_activations(self._history(category))

    def previous(self, category: str) -> int | None:
        """The version that a rollback makes active again; None where there is none.

        Raises:
            ArtifactError: as ``activations``.
        """
        return previous(self.activations(category), self.versions(category))

    def stamp(self, category: str, version: int) -> Hashable:
        """A value that changes when a file of a version does, had without opening one."""
        folder = self.folder(category, version)
        paths = sorted(folder.rglob("*"))
        return tuple((str(path.relative_to(folder)), *_identity(path.lstat())) for path in paths)

    def folder(self, category: str, version: int) -> Path:
        """The artifact of a version."""
        versions = self.versions(category)
        if version not in versions:
            raise UnknownVersion(category, version, versions)
        return self._versions(category) / str(version)

    def publish(
        self,
        category: str,
        write: Callable[[Path, int], None],
        *,
        activate: bool = True,
        author: str | None = None,
        records: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> int:
        """Add a version: readers see all of it or nothing, whenever this process or the machine stops.

        Publishers of one category wait for each other, so ``write`` should store what is trained already, and it must
        not call back into the store. If it raises, nothing of the version remains.

        Args:
            write: gets an empty folder and the version's number, and leaves an artifact with its manifest there.
            activate: whether the new version becomes the active one.
            author: who does, for the history of activations; None for the user of this process.
            records: by name, what is recorded about the version before anybody can read it.

        Returns:
            The version's number: larger than any that the category still has a trace of.

        Raises:
            ArtifactError: ``write`` left something other than a whole artifact of this category and version.
            ValueError: as ``record``.
        """
        check_category_name(category)
        texts = {name: record_text(name, payload) for name, payload in (records or {}).items()}
        versions = self._versions(category)
        self._make_folder(versions)
        staging = versions / _STAGING
        with self._lock(category):
            remove(staging)
            version = self._next_version(category)
            staging.mkdir()
            try:
                write(staging, version)
                manifest = verify(staging)
                if (manifest.category, manifest.version) != (category, version):
                    raise ArtifactError(
                        f"the manifest is that of {manifest.category!r} version {manifest.version}, "
                        f"published as {category!r} version {version}"
                    )
                make_read_only(staging)
                sync_tree(staging)
                for name, text in texts.items():
                    self._write_record(category, version, name, text)
                staging.rename(versions / str(version))
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)  # what stays, the next publish removes
                if texts:
                    shutil.rmtree(self._records(category, version), ignore_errors=True)
                raise
            sync_folder(versions)
            if activate:
                self._activate(category, version, author)
        return version

    def activate(self, category: str, version: int, *, author: str | None = None, rollback: bool = False) -> None:
        """Make a version the active one; it is the shadow no longer.

        Args:
            author: who does; None for the user of this process.
            rollback: whether the version is the one that ``previous`` named.

        Raises:
            StoreReadOnly: this process may not write to the category.
            ArtifactError: as ``activations``.
        """
        self.folder(category, version)
        with self._lock(category):
            self._activate(category, version, author, rollback=rollback)

    def set_shadow(self, category: str, version: int | None) -> None:
        """Let a version score beside the active one, or, with None, no version.

        Raises:
            StoreReadOnly: this process may not write to the category.
        """
        if version is None:
            self.versions(category)
        else:
            self.folder(category, version)
        with self._lock(category):
            self._point(category, _SHADOW, version)

    def check_writable(self, category: str) -> None:
        """See that this process may write to a category, before work is spent on what will be written.

        Raises:
            StoreReadOnly: it may not.
        """
        self.versions(category)
        if not os.access(folder := self._category(category), os.W_OK):
            raise _read_only(folder)

    def record(
        self, category: str, version: int, name: str, payload: Mapping[str, Any], *, replace: bool = True
    ) -> Path:
        """Store a JSON object about a version, in place of the one of that name if there is one.

        Args:
            replace: whether it may take the place of one; else it is written once.

        Raises:
            RecordExists: there is one of that name, and it may not be replaced.
            ValueError: the name does not follow the rule of category names, or JSON cannot express the payload.
        """
        self.folder(category, version)
        text = record_text(name, payload)
        with self._lock(category):
            if not replace and self._record(category, version, name).exists():
                raise RecordExists(f"{category!r} version {version} has a record {name!r} already")
            return self._write_record(category, version, name, text)

    def records(self, category: str, version: int) -> dict[str, dict[str, Any]]:
        """The records of a version by name.

        Raises:
            ArtifactError: a record is damaged.
        """
        paths = self._record_paths(category, version)
        return {path.stem: read_record(path) for path in paths if path.is_file() and not path.is_symlink()}

    def record_names(self, category: str, version: int) -> list[str]:
        """The names of a version's records, none of them read."""
        return [path.stem for path in self._record_paths(category, version)]

    def _record_paths(self, category: str, version: int) -> list[Path]:
        self.folder(category, version)
        folder = self._records(category, version)
        if not self._is_own_folder(folder):
            return []
        return [path for path in sorted(folder.glob("*.json")) if NAME.fullmatch(path.stem)]

    def _write_record(self, category: str, version: int, name: str, text: str) -> Path:
        """Put a record in its place; the caller holds the category's lock."""
        path = self._record(category, version, name)
        self._make_folder(path.parent)
        write_file(path, text)
        return path

    def _category(self, category: str) -> Path:
        return self.root / category

    def _versions(self, category: str) -> Path:
        return self._category(category) / "versions"

    def _records(self, category: str, version: int) -> Path:
        return self._category(category) / "records" / str(version)

    def _record(self, category: str, version: int, name: str) -> Path:
        return self._records(category, version) / f"{name}.json"

    def _published(self, category: str) -> list[int]:
        folder = self._versions(category)
        if not self._is_own_folder(folder):
            return []
        return sorted(number for number in numbers_in(folder) if self._is_own_folder(folder / str(number)))

    def _history(self, category: str) -> Path:
        return self._category(category) / "activations.json"

    def _named(self, category: str, name: str) -> int | None:
        """The version that a pointer of the category names, which is there."""
        check_category_name(category)
        version = self._pointer(category, name)  # before the list: a version is there before the pointer names it
        versions = self.versions(category)
        if version is not None and version not in versions:
            path = self._category(category) / name
            others = ", ".join(map(str, versions))
            raise ArtifactError(f"{path} names version {version}, which is gone; {_ADVICE[name]} one of {others}")
        return version

    def _pointer(self, category: str, name: str) -> int | None:
        return read_pointer(self._category(category) / name, f"{_ADVICE[name]} a version")

    def _activate(self, category: str, version: int, author: str | None, *, rollback: bool = False) -> None:
        history = read_activations(self._history(category))
        with suppress(ArtifactError):  # a damaged pointer is mended by the new one
            before = self._pointer(category, _ACTIVE)
            if before is not None and [entry.version for entry in history[-1:]] != [before]:
                # Activated without a line here: by an older Plumbline, or by one that died in between.
                moved = datetime.fromtimestamp((self._category(category) / _ACTIVE).stat().st_mtime, UTC)
                history.append(Activation(version=before, time=moved, author=None))
        self._point(category, _ACTIVE, version)
        if [entry.version for entry in history[-1:]] != [version]:
            now, author = datetime.now(UTC), author or system_user()
            history.append(Activation(version=version, time=now, author=author, rollback=rollback))
            write_file(self._history(category), rendered(history))
        with suppress(ArtifactError):
            if self._pointer(category, _SHADOW) == version:
                self._point(category, _SHADOW, None)

    def _point(self, category: str, name: str, version: int | None) -> None:
        path = self._category(category) / name
        if version is None:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
        else:
            write_file(path, f"{version}\n")

    def _next_version(self, category: str) -> int:
        # A version deleted by hand leaves records and the pointer: given again, its number would inherit both.
        taken = numbers_in(self._versions(category)) | numbers_in(self._category(category) / "records")
        with suppress(ArtifactError):  # a damaged pointer is no reason not to publish
            taken.add(self._pointer(category, _ACTIVE) or 0)
        return max(taken, default=0) + 1

    def _is_own_folder(self, folder: Path) -> bool:
        """Whether a folder below the root exists, with no symbolic link on the way to it."""
        return folder.is_dir() and not self._links(folder)

    def _links(self, folder: Path) -> list[Path]:
        steps = [folder, *folder.parents]
        return [step for step in steps[: steps.index(self.root)] if step.is_symlink()]

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and those above it, each on the disk before the next."""
        if links := self._links(folder):
            raise StoreError(f"{links[0]} is a symbolic link, which the store does not follow; put a folder there")
        for step in reversed([folder, *folder.parents]):
            if not step.is_dir():
                try:
                    step.mkdir(exist_ok=True)
                except FileExistsError as error:
                    raise StoreError(f"{step} is a file where the store needs a folder; move it away") from error
                sync_folder(step.parent)

    @contextmanager
    def _lock(self, category: str) -> Iterator[None]:
        folder = self._category(category)
        if not os.access(folder, os.W_OK):
            raise _read_only(folder)
        try:
            descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise _read_only(folder) from error
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_only(folder: Path) -> StoreReadOnly:
    return StoreReadOnly(f"this process may not write to {folder}; do it as a user, on a machine, that may")
