"""The versions of a category, as the store and this process have them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from models.artifact import ArtifactError, read_manifest
from models.store import ModelStore
from models.store_errors import StoreError
from service.entries import Entry
from service.loader import Loader


class VersionState(StrEnum):
    STORED = "stored"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


@dataclass(frozen=True)
class VersionFacts:
    """A version of a category, as the store and this process have it.

    Attributes:
        created: when it was published; None where its manifest is damaged.
        active: whether the store says so.
        served: whether requests that name no version are given it.
        memory_bytes: what it holds, where it is loaded.
        reason: why it could not be loaded.
    """

    version: int
    state: VersionState
    created: datetime | None
    active: bool
    served: bool
    shadow: bool
    memory_bytes: int | None
    reason: str | None


def read_versions(store: ModelStore, name: str) -> tuple[int | None, dict[int, datetime | None]]:
    """The active version, and of every version when it was created; reads the store.

    Raises:
        StoreError, OSError: the category is not in the store, or the store cannot be read.
    """
    active, created = None, dict[int, datetime | None]()
    with suppress(ArtifactError):  # a damaged pointer is told as the category's reason
        active = store.active(name)
    for version in store.versions(name):
        created[version] = None
        with suppress(ArtifactError, StoreError):
            created[version] = read_manifest(store.folder(name, version)).created
    return active, created


def version_facts(
    entry: Entry, loader: Loader, version: int, active: int | None, created: datetime | None
) -> VersionFacts:
    """What is known of one version."""
    loaded, failure = loader.loaded(entry.name, version), loader.failure(entry.name, version)
    if loaded is not None:
        state = VersionState.LOADED
    elif loader.is_loading(entry.name, version):
        state = VersionState.LOADING
    else:
        state = VersionState.STORED if failure is None else VersionState.FAILED
    return VersionFacts(
        version=version,
        state=state,
        created=created,
        active=version == active,
        served=version == entry.served,
        shadow=version == entry.shadow,
        memory_bytes=None if loaded is None else loaded.memory_bytes,
        reason=failure,
    )
