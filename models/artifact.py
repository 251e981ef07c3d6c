"""The folder that holds one version of a detector: its manifest, and the proof that the folder is whole.

The manifest names every other file with its SHA-256, and carries its own. It is written last and flushed to the disk:
a folder without one is not an artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from models.geometry import ScanGeometry

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
LIBRARIES = ("plumbline", "torch", "numpy", "faiss-gpu", "faiss-cpu", "opencv-python")
"""The distributions whose version can move a score; the manifest records those that are installed."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_BLANK_DIGEST = "0" * 64


class ArtifactError(Exception):
    """An artifact is missing, damaged, or of a format that this build does not read."""


class Manifest(BaseModel):
    """What one version is, and what its folder must contain.

    Attributes:
        version: number in the store; None for a detector that was saved outside one.
        created: when the manifest was written, UTC.
        configuration: everything needed to build the detector again around its arrays.
        data_fingerprint: SHA-256 over the training images.
        library_versions: distribution name -> version.
        files: path inside the folder, with forward slashes -> SHA-256; every file but the manifest.
        digest: SHA-256 of the manifest's own text with 64 zeros in this place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    category: str
    version: int | None = Field(ge=1)
    created: AwareDatetime
    configuration: dict[str, JsonValue]
    geometry: ScanGeometry
    data_fingerprint: str
    library_versions: dict[str, str]
    files: dict[str, Sha256]
    digest: Sha256


def write_manifest(
    folder: Path,
    *,
    category: str,
    version: int | None,
    configuration: Mapping[str, JsonValue],
    geometry: ScanGeometry,
    data_fingerprint: str,
) -> Manifest:
    """Close a folder of finished files: hash them all, write the manifest, flush everything to the disk.

    Raises:
        ArtifactError: the folder already has a manifest, or holds something other than plain files and folders.
        ValueError: a value has no place in JSON, such as a NaN.
    """
    if os.path.lexists(folder / MANIFEST):
        raise ArtifactError(f"{folder} already has a {MANIFEST}: an artifact is written once, into an empty folder")
    files, others = _contents(folder)
    if others:
        raise ArtifactError(f"{folder} may hold plain files and folders only; take out {_quoted(others)}")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        category=category,
        version=version,
        created=datetime.now(UTC),
        configuration=dict(configuration),
        geometry=geometry,
        data_fingerprint=data_fingerprint,
        library_versions=_library_versions(),
        files={name: _sha256(path) for name, path in files.items()},
        digest=_BLANK_DIGEST,
    )
    manifest = manifest.model_copy(update={"digest": hashlib.sha256(_rendered(manifest)).hexdigest()})
    (folder / MANIFEST).write_bytes(_rendered(manifest))
    sync_tree(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact, proven to be as it was written; its files are not looked at.

    Raises:
        ArtifactError: there is no manifest, it is damaged, or its format version is unknown.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{folder} is not an artifact, or not a whole one: it has no {MANIFEST}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    # The format comes first: of another format nothing else can be expected, its digest included.
    if not isinstance(content, dict) or "format_version" not in content:
        raise _damaged(path, "it has no format_version")
    if content["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {content['format_version']!r}; this build reads format version "
            f"{FORMAT_VERSION}: use the Plumbline that wrote it, or train the category again"
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    unsigned = text.replace(manifest.digest.encode(), _BLANK_DIGEST.encode())
    if hashlib.sha256(unsigned).hexdigest() != manifest.digest:
        raise _damaged(path, "its text does not match its digest")
    return manifest


def verify(folder: Path) -> Manifest:
    """Read the manifest and hash every file against it, without holding a file in memory.

    Raises:
        ArtifactError: as ``read_manifest``, or naming each file that is missing, altered or extra.
    """
    manifest = read_manifest(folder)
    # Only paths found in the folder are opened: a name in a forged manifest leads nowhere.
    files, others = _contents(folder)
    problems = {
        "missing": manifest.files.keys() - files.keys() - set(others),
        "altered": {
            name for name in manifest.files.keys() & files.keys() if not _is(files[name], manifest.files[name])
        },
        "extra": files.keys() - manifest.files.keys(),
        "not a plain file": set(others),
    }
    if any(problems.values()):
        found = "; ".join(f"{problem}: {_quoted(names)}" for problem, names in problems.items() if names)
        raise ArtifactError(
            f"artifact {folder} is not as it was written ({found}); restore the folder from a copy, or train again"
        )
    return manifest


def sync_tree(folder: Path) -> None:
    """Flush every file under a folder, and then the folders themselves, to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(parent, name))
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk: only then does a file created or renamed in it outlive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _contents(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The plain files under a folder by name, the manifest left out, and the names of links and special files."""
    files: dict[str, Path] = {}
    others: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            others.append(name)
        elif path.is_file() and name != MANIFEST:
            files[name] = path
    return files, others


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is(path: Path, digest: str) -> bool:
    try:
        return _sha256(path) == digest
    except PermissionError as error:
        raise ArtifactError(f"{path} cannot be read by this user: give it the permission (chmod a+r)") from error
    except OSError:  # a file that cannot be read is not the file that was written
        return False


def _rendered(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False) + "\n").encode()


def _library_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _quoted(names: set[str] | list[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged ({reason}); restore the folder from a copy, or train the category again")
