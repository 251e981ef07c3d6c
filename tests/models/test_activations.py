"""The history of activations, the way back through it, the shadow, and who may write."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.activations import Activation, previous, system_user
from models.artifact import ArtifactError
from models.store import ModelStore
from models.store_errors import StoreReadOnly, UnknownVersion
from tests.models.support import CATEGORY, write


def store_of(root: Path, versions: int) -> ModelStore:
    store = ModelStore(root)
    for _ in range(versions):
        store.publish(CATEGORY, write)
    return store


def back(store: ModelStore) -> int | None:
    version = store.previous(CATEGORY)
    if version is not None:
        store.activate(CATEGORY, version, rollback=True)
    return version


def test_history_says_what_when_and_who(tmp_path: Path) -> None:
    begun = datetime.now(UTC)
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write, author="trainer")
    store.publish(CATEGORY, write, activate=False)
    assert [entry.version for entry in store.activations(CATEGORY)] == [1]
    store.activate(CATEGORY, 2, author="anna")
    store.activate(CATEGORY, 1)
    store.activate(CATEGORY, 1)  # it is already
    history = store.activations(CATEGORY)
    assert [entry.version for entry in history] == [1, 2, 1]
    assert [entry.author for entry in history] == ["trainer", "anna", system_user()]
    times = [entry.time for entry in history]
    assert begun <= times[0] <= times[1] <= times[2] <= datetime.now(UTC)


def test_rollback_goes_back_step_by_step_and_a_new_activation_begins_there(tmp_path: Path) -> None:
    store = store_of(tmp_path, 4)
    assert [back(store), back(store)] == [3, 2]
    store.activate(CATEGORY, 4)
    assert [back(store), back(store), back(store)] == [2, 1, None]
    assert store.active(CATEGORY) == 1


def test_rollback_passes_over_versions_that_are_gone(tmp_path: Path) -> None:
    store = store_of(tmp_path, 3)
    shutil.rmtree(store.folder(CATEGORY, 2))
    assert back(store) == 1


def test_a_version_activated_again_by_number_is_a_step_forward_and_never_its_own_step_back(tmp_path: Path) -> None:
    store = store_of(tmp_path, 3)
    store.activate(CATEGORY, 1)
    assert store.previous(CATEGORY) == 3
    for version in (2, 3):
        shutil.rmtree(store.folder(CATEGORY, version))
    assert store.previous(CATEGORY) is None


@given(st.lists(st.integers(1, 4), max_size=20))
def test_rollback_undoes_activations(sequence: list[int]) -> None:
    """Against a list of what was active; rolling back is 4."""
    now, history, line = datetime.now(UTC), list[Activation](), list[int]()
    for version in sequence:
        if version == 4:
            target = previous(history, {1, 2, 3})
            assert target == (line[-2] if len(line) > 1 else None)
            if target is not None:
                line.pop()
                history.append(Activation(version=target, time=now, author=None, rollback=True))
        elif version not in line:  # of versions that come twice, a rollback by number may pass the later one
            line.append(version)
            history.append(Activation(version=version, time=now, author=None))


def test_what_was_activated_before_there_was_a_history_can_be_rolled_back_to(tmp_path: Path) -> None:
    store = store_of(tmp_path, 2)
    (tmp_path / CATEGORY / "activations.json").unlink()
    assert store.activations(CATEGORY) == []
    assert store.previous(CATEGORY) is None
    store.activate(CATEGORY, 1, author="anna")
    first, second = store.activations(CATEGORY)
    assert (first.version, first.author, second.version, second.author) == (2, None, 1, "anna")
    assert datetime.now(UTC) - first.time < timedelta(hours=1)
    assert store.previous(CATEGORY) == 2


def test_a_rollback_begins_at_the_active_version_also_where_whoever_activated_it_died(tmp_path: Path) -> None:
    store = store_of(tmp_path, 2)
    history = tmp_path / CATEGORY / "activations.json"
    before = history.read_bytes()
    store.publish(CATEGORY, write)
    history.write_bytes(before)  # the pointer is moved first
    assert store.active(CATEGORY) == 3
    assert [back(store), back(store), back(store)] == [2, 1, None]


def test_a_damaged_history_is_named_and_nothing_is_activated(tmp_path: Path) -> None:
    store = store_of(tmp_path, 2)
    (tmp_path / CATEGORY / "activations.json").write_text('[{"version": 1')
    for act in (lambda: store.activate(CATEGORY, 1), lambda: store.activations(CATEGORY)):
        with pytest.raises(ArtifactError, match=r"activations.json is damaged; move it away.*\(Invalid JSON: .*\)$"):
            act()
    assert store.active(CATEGORY) == 2


def test_history_is_json(tmp_path: Path) -> None:
    store_of(tmp_path, 1)
    (entry,) = json.loads((tmp_path / CATEGORY / "activations.json").read_text())
    assert entry.keys() == {"version", "time", "author", "rollback"}


def test_shadow(tmp_path: Path) -> None:
    store = store_of(tmp_path, 3)
    assert store.shadow(CATEGORY) is None
    store.set_shadow(CATEGORY, 2)
    assert (store.shadow(CATEGORY), store.active(CATEGORY)) == (2, 3)
    with pytest.raises(UnknownVersion):
        store.set_shadow(CATEGORY, 9)
    store.activate(CATEGORY, 1)
    assert store.shadow(CATEGORY) == 2
    store.activate(CATEGORY, 2)
    assert store.shadow(CATEGORY) is None
    store.set_shadow(CATEGORY, 1)
    store.set_shadow(CATEGORY, None)
    store.set_shadow(CATEGORY, None)
    assert store.shadow(CATEGORY) is None
    store.set_shadow(CATEGORY, 1)
    shutil.rmtree(store.folder(CATEGORY, 1))
    with pytest.raises(ArtifactError, match=r"shadow names version 1, which is gone; choose as shadow one of 2, 3"):
        store.shadow(CATEGORY)


def test_that_a_shadow_was_taken_away_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, 1)
    store.set_shadow(CATEGORY, 1)
    flushed: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    store.set_shadow(CATEGORY, None)
    assert flushed == [tmp_path / CATEGORY]


def test_a_stamp_changes_with_the_files(tmp_path: Path) -> None:
    store = store_of(tmp_path, 2)
    first, second = store.stamp(CATEGORY, 1), store.stamp(CATEGORY, 2)
    assert first != second
    store.activate(CATEGORY, 1)
    store.record(CATEGORY, 1, "metrics", {})
    assert store.stamp(CATEGORY, 1) == first
    file = store.folder(CATEGORY, 1) / "encoder.safetensors"
    content = file.read_bytes()
    file.unlink()
    gone = store.stamp(CATEGORY, 1)
    file.write_bytes(content)
    assert len({first, gone, store.stamp(CATEGORY, 1)}) == 3
    with pytest.raises(UnknownVersion):
        store.stamp(CATEGORY, 3)


def test_a_stamp_changes_with_the_size_the_place_or_the_time_of_a_file_alone(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1)
    file = store.folder(CATEGORY, 1) / "encoder.safetensors"
    content, time = file.read_bytes(), file.stat().st_mtime_ns
    stamps = {store.stamp(CATEGORY, 1)}
    file.chmod(0o666)
    file.write_bytes(content + b"x")
    os.utime(file, ns=(time, time))
    stamps.add(store.stamp(CATEGORY, 1))
    other = tmp_path / "other"
    other.write_bytes(content)
    os.utime(other, ns=(time, time))
    other.replace(file)
    stamps.add(store.stamp(CATEGORY, 1))
    os.utime(file, ns=(time, time + 1))
    stamps.add(store.stamp(CATEGORY, 1))
    assert len(stamps) == 4


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_lock_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = store_of(tmp_path, 2)

    def refused(path: Path, *arguments: int) -> NoReturn:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StoreReadOnly, match="may not write to"):
        store.activate(CATEGORY, 1)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    store = store_of(tmp_path / "models", 2)
    (tmp_path / "models" / CATEGORY / ".lock").unlink()
    (tmp_path / "models" / CATEGORY / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        store.activate(CATEGORY, 1)
    assert not (tmp_path / "elsewhere").exists()


def test_a_store_that_is_mounted_read_only(tmp_path: Path) -> None:
    store_of(tmp_path / "disk", 2)
    mount = tmp_path / "models"
    mount.mkdir()
    if os.getuid() or subprocess.run(["mount", "--bind", "-o", "ro", tmp_path / "disk", mount], check=False).returncode:
        pytest.skip("only root may mount, and not everywhere")
    try:
        store = ModelStore(mount)
        acts: list[Callable[[], object]] = [
            lambda: store.check_writable(CATEGORY),
            lambda: store.activate(CATEGORY, 1),
            lambda: store.set_shadow(CATEGORY, 1),
        ]
        for act in acts:
            with pytest.raises(StoreReadOnly, match="may not write to"):
                act()
        assert store.active(CATEGORY) == 2
    finally:
        subprocess.run(["umount", mount], check=True)
