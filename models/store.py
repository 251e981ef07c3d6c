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

import os
import shutil
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.activations import Activation, previous, read_activations, rendered, system_user
from models.artifact import ArtifactError, sync_folder, sync_tree, verify
from models.store_category import ACTIVE, ADVICE, SHADOW, CategoryFolder
from models.store_errors import InvalidCategoryName, RecordExists, StoreNotFound, UnknownCategory, UnknownVersion
from models.store_files import NAME, make_read_only, read_record, record_text, remove, write_file


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
        """The categories that have at least one version, sorted; and those whose folder this process may not read."""
        if not self.root.is_dir():
            raise StoreNotFound(f"there is no model store at {self.root}; name the folder that models are published to")
        names = [entry.name for entry in self.root.iterdir() if NAME.fullmatch(entry.name)]
        return sorted(name for name in names if self._is_category(name))

    def _is_category(self, name: str) -> bool:
        try:
            return bool(self._of(name).published())
        except PermissionError:  # no reason to keep the others back; who asks for this one is told
            return True

    def versions(self, category: str) -> list[int]:
        """The versions of a category, ascending."""
        check_category_name(category)
        versions = self._of(category).published()
        if not versions:
            raise UnknownCategory(category, self.categories())
        return versions

    def active(self, category: str) -> int | None:
        """The active version of a category; None where none was ever activated.

        Raises:
            ArtifactError: the pointer is damaged, or names a version that is gone.
        """
        return self._named(category, ACTIVE)

    def shadow(self, category: str) -> int | None:
        """The version that scores beside the active one and only records; None where there is none.

        Raises:
            ArtifactError: as ``active``.
        """
        return self._named(category, SHADOW)

    def activations(self, category: str) -> list[Activation]:
        """Which version became active when, the latest last.

        Raises:
            ArtifactError: the history is damaged.
        """
        self.versions(category)
        return read_activations(self._of(category).history)

    def previous(self, category: str) -> int | None:
        """The version that a rollback makes active again; None where there is none.

        Raises:
            ArtifactError: as ``activations``.
        """
        versions = self.versions(category)
        return previous(_activations(self._of(category)), versions)

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
        return self._of(category).version(version)

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
        folder = self._of(category)
        folder.make(folder.versions)
        staging = folder.staging
        with folder.lock():
            remove(staging)
            version = folder.next_version()
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
                    folder.write_record(version, name, text)
                staging.rename(folder.version(version))
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)  # what stays, the next publish removes
                if texts:
                    shutil.rmtree(folder.records(version), ignore_errors=True)
                raise
            sync_folder(folder.versions)
            if activate:
                _activate(folder, version, author)
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
        folder = self._of(category)
        with folder.lock():
            _activate(folder, version, author, rollback=rollback)

    def set_shadow(self, category: str, version: int | None) -> None:
        """Let a version score beside the active one, or, with None, no version.

        Raises:
            StoreReadOnly: this process may not write to the category.
        """
        if version is None:
            self.versions(category)
        else:
            self.folder(category, version)
        folder = self._of(category)
        with folder.lock():
            folder.point(SHADOW, version)

    def check_writable(self, category: str) -> None:
        """See that this process may write to a category, before work is spent on what will be written.

        Raises:
            StoreReadOnly: it may not.
        """
        self.versions(category)
        self._of(category).check_writable()

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
        folder = self._of(category)
        with folder.lock():
            if not replace and folder.record(version, name).exists():
                raise RecordExists(f"{category!r} version {version} has a record {name!r} already")
            return folder.write_record(version, name, text)

    def records(self, category: str, version: int) -> dict[str, dict[str, Any]]:
        """The records of a version by name.

        Raises:
            ArtifactError: a record is damaged.
        """
        return {path.stem: read_record(path) for path in self._record_paths(category, version)}

    def record_names(self, category: str, version: int) -> list[str]:
        """The names of a version's records, none of them read."""
        return [path.stem for path in self._record_paths(category, version)]

    def _record_paths(self, category: str, version: int) -> list[Path]:
        self.folder(category, version)
        return self._of(category).record_paths(version)

    def _of(self, category: str) -> CategoryFolder:
        return CategoryFolder(self.root, category)

    def _named(self, category: str, name: str) -> int | None:
        """The version that a pointer of the category names, which is there."""
        check_category_name(category)
        folder = self._of(category)
        version = folder.pointer(name)  # before the list: a version is there before the pointer names it
        versions = self.versions(category)
        if version is not None and version not in versions:
            others = ", ".join(map(str, versions))
            raise ArtifactError(
                f"{folder.path / name} names version {version}, which is gone; {ADVICE[name]} one of {others}"
            )
        return version


def _activate(folder: CategoryFolder, version: int, author: str | None, *, rollback: bool = False) -> None:
    """Point to a version and write it down; the caller holds the folder's lock."""
    history = _activations(folder)
    folder.point(ACTIVE, version)
    if [entry.version for entry in history[-1:]] != [version]:
        now, author = datetime.now(UTC), author or system_user()
        history.append(Activation(version=version, time=now, author=author, rollback=rollback))
        write_file(folder.history, rendered(history))
    with suppress(ArtifactError):
        if folder.pointer(SHADOW) == version:
            folder.point(SHADOW, None)


def _activations(folder: CategoryFolder) -> list[Activation]:
    """The history up to the active version, which may have no line in the file: by an older Plumbline, or by one that
    died in between.
    """
    history = read_activations(folder.history)
    with suppress(ArtifactError):  # a damaged pointer is mended by the next one
        active = folder.pointer(ACTIVE)
        if active is not None and [entry.version for entry in history[-1:]] != [active]:
            moved = datetime.fromtimestamp((folder.path / ACTIVE).stat().st_mtime, UTC)
            history.append(Activation(version=active, time=moved, author=None))
    return history


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
