"""The store: versions, the active one, records, names, and what is damaged; how it publishes: test_store_publishing."""

from __future__ import annotations

import os
import re
import shutil
import stat
import string
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.artifact import MANIFEST, ArtifactError, verify
from models.store import ModelStore
from models.store_errors import InvalidCategoryName, StoreError, StoreNotFound, UnknownCategory, UnknownVersion
from tests.models.support import CATEGORY, FILES, close, write


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


operations = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish quietly", "fail", "activate", "delete", "record"]), st.integers(1, 6)
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(operations)
def test_the_store_does_what_a_dictionary_would(sequence: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = ModelStore(Path(root))
        present: set[int] = set()
        recorded: dict[int, int] = {}
        active: int | None = None
        for count, (operation, version) in enumerate(sequence):
            if operation.startswith("publish"):
                number = store.publish(CATEGORY, write, activate=operation == "publish")
                assert number > max(present | recorded.keys() | {active or 0}, default=0)
                present.add(number)
                active = number if operation == "publish" else active
            elif operation == "fail":
                with pytest.raises(ArtifactError):
                    store.publish(CATEGORY, lambda folder, _: (folder / "half").touch())
            elif version not in present:
                with pytest.raises((UnknownVersion, UnknownCategory)):
                    store.activate(CATEGORY, version)
            elif operation == "activate":
                store.activate(CATEGORY, version)
                active = version
            elif operation == "record":
                store.record(CATEGORY, version, "metrics", {"count": count})
                recorded[version] = count
            elif version != active:
                shutil.rmtree(store.folder(CATEGORY, version))
                present.remove(version)
            assert store.categories() == ([CATEGORY] if present else [])
            if present:
                assert store.versions(CATEGORY) == sorted(present)
                assert store.active(CATEGORY) == active
                for number in present:
                    expected = {"metrics": {"count": recorded[number]}} if number in recorded else {}
                    assert store.records(CATEGORY, number) == expected
                    assert store.folder(CATEGORY, number) == Path(root, CATEGORY, "versions", str(number))


def test_roll_back_and_forward(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        store.publish(CATEGORY, write)
    for version in (1, 3, 2):
        store.activate(CATEGORY, version)
        assert store.active(CATEGORY) == version
        assert (tmp_path / CATEGORY / "active").read_text() == f"{version}\n"
    with pytest.raises(UnknownVersion, match=r"'bottle' has no version 4; there is 1, 2, 3"):
        store.activate(CATEGORY, 4)
    assert store.active(CATEGORY) == 2
    assert store.publish(CATEGORY, write, activate=False) == 4
    assert store.active(CATEGORY) == 2


def test_a_published_file_is_read_only_and_its_version_can_be_deleted(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    folder = store.folder(CATEGORY, store.publish(CATEGORY, write))
    for name in (*FILES, MANIFEST):
        assert not (folder / name).stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
        assert (folder / name).stat().st_mode & stat.S_IROTH  # another user serves it
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_version_that_was_damaged_is_listed_and_found_damaged(tmp_path: Path, name: str) -> None:
    store = ModelStore(tmp_path)
    folder = store.folder(CATEGORY, store.publish(CATEGORY, write))
    (folder / name).unlink()
    assert store.versions(CATEGORY) == [1]
    with pytest.raises(ArtifactError, match=re.escape(name)):
        verify(folder)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    before = snapshot(tmp_path)

    def interrupted(folder: Path, version: int) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.publish(CATEGORY, interrupted)
    assert snapshot(tmp_path) == before


def late_file(folder: Path, version: int) -> None:
    close(folder, version)
    (folder / "late").touch()


def link(folder: Path, version: int) -> None:
    close(folder, version)
    (folder / "up").symlink_to("..")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda folder, version: None, f"no {MANIFEST}"),
        (lambda folder, version: close(folder, version + 1), "'bottle' version 2, published as 'bottle' version 1"),
        (lambda folder, version: close(folder, version, "cable"), "'cable' version 1, published as 'bottle'"),
        (late_file, "extra: 'late'"),
        (link, "not a plain file: 'up'"),
    ],
)
def test_only_a_whole_artifact_of_this_version_is_published(
    tmp_path: Path, wrong: Callable[[Path, int], None], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        ModelStore(tmp_path).publish(CATEGORY, wrong)
    assert ModelStore(tmp_path).categories() == []


ALLOWED = set(string.ascii_letters + string.digits + "-_")
UNSAFE = [
    "",
    ".",
    "..",
    "../bottle",
    "bottle/../bottle",
    "bottle/versions",
    "/etc",
    "a/b",
    "a\\b",
    "-a",
    "_a",
    ".a",
    "a.b",
    "a b",
    "a\n",
    "a\x00",
    "~",
    "é",
    "a²",
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("kept") / "models")
    store.publish(CATEGORY, write)
    return store


@settings(deadline=None)
@given(st.sampled_from([*UNSAFE, "x" * 64, "x" * 65]) | st.text(max_size=70) | st.text(sorted(ALLOWED), max_size=70))
def test_no_other_name_reaches_a_file(kept: ModelStore, name: str) -> None:
    before = snapshot(kept.root.parent)
    if 0 < len(name) <= 64 and ALLOWED.issuperset(name) and name[0] not in "-_":
        with pytest.raises(UnknownCategory):
            kept.versions(name)
        return
    requests: list[Callable[[], object]] = [
        lambda: kept.versions(name),
        lambda: kept.active(name),
        lambda: kept.shadow(name),
        lambda: kept.activations(name),
        lambda: kept.set_shadow(name, 1),
        lambda: kept.set_shadow(name, None),
        lambda: kept.stamp(name, 1),
        lambda: kept.folder(name, 1),
        lambda: kept.activate(name, 1),
        lambda: kept.publish(name, write),
        lambda: kept.record(name, 1, "metrics", {}),
        lambda: kept.records(name, 1),
    ]
    for request in requests:
        with pytest.raises(InvalidCategoryName, match=r"is no category name: use 1 to 64"):
            request()
    with pytest.raises(ValueError, match="is no record name"):
        kept.record(CATEGORY, 1, name, {})
    assert snapshot(kept.root.parent) == before


def test_foreign_things_are_ignored(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    versions = tmp_path / CATEGORY / "versions"
    for name in ("backup", "01", "0", "-1", "1.old", "²", "٣", ".staging", "1e3"):
        (versions / name).mkdir()
    (versions / "5").touch()
    (versions / "6").symlink_to(versions / "1")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "README").touch()
    (tmp_path / "cable" / "versions").mkdir(parents=True)
    assert store.categories() == [CATEGORY]
    assert store.versions(CATEGORY) == [1]
    assert store.publish(CATEGORY, write) == 7  # in nobody's way


def test_unknown_categories_name_those_that_exist(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(UnknownCategory, match="no category 'cable'; there is none yet"):
        store.versions("cable")
    store.publish(CATEGORY, write)
    store.publish("wood", lambda folder, version: close(folder, version, "wood"))
    with pytest.raises(UnknownCategory, match="no category 'cable'; there is bottle, wood") as error:
        store.active("cable")
    assert error.value.known == store.categories() == [CATEGORY, "wood"]
    assert not (tmp_path / "cable").exists()


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_category_that_may_not_be_read_keeps_no_other_back() -> None:
    """It is listed, for who asks for it is told why it cannot be had."""
    with tempfile.TemporaryDirectory() as root:
        store, secret = ModelStore(Path(root)), Path(root, "secret")
        store.root.chmod(0o755)
        store.publish(CATEGORY, write)
        store.publish(secret.name, lambda folder, version: close(folder, version, secret.name))
        secret.chmod(0)
        try:
            with as_somebody_else():
                assert store.categories() == [CATEGORY, secret.name]
                assert store.active(CATEGORY) == 1
                with pytest.raises(PermissionError, match=str(secret)):
                    store.active(secret.name)
        finally:
            secret.chmod(0o700)


def test_a_root_that_does_not_exist(tmp_path: Path) -> None:
    root = tmp_path / "some" / "models"
    store = ModelStore(root)
    for request in (store.categories, lambda: store.versions(CATEGORY), lambda: store.active(CATEGORY)):
        with pytest.raises(StoreNotFound, match=f"no model store at {root}"):
            request()
    assert not root.exists()
    assert store.publish(CATEGORY, write) == 1


def test_a_pointer_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    (tmp_path / CATEGORY / "active").unlink()
    os.mkfifo(tmp_path / CATEGORY / "active")
    problems: list[ArtifactError] = []

    def read() -> None:
        try:
            store.active(CATEGORY)
        except ArtifactError as error:
            problems.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10)
    assert [str(error).count("should hold a version's number") for error in problems] == [1]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"0", b"01\n", b"1\n2\n", b" 1", b"-1", b"1.0", b"../1", b"\xff", b"9" * 99]
)
def test_a_damaged_pointer_is_said_and_mended(tmp_path: Path, content: bytes) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    (tmp_path / CATEGORY / "active").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bottle/active should hold a version's number.*activate a version again"):
        store.active(CATEGORY)
    assert store.versions(CATEGORY) == [1]
    store.activate(CATEGORY, 1)
    assert store.active(CATEGORY) == 1
    (tmp_path / CATEGORY / "active").write_bytes(content)
    assert store.publish(CATEGORY, write) == store.active(CATEGORY) == 2


def test_a_pointer_to_a_version_that_is_gone(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        store.publish(CATEGORY, write)
    shutil.rmtree(store.folder(CATEGORY, 3))
    with pytest.raises(ArtifactError, match="names version 3, which is gone; activate one of 1, 2"):
        store.active(CATEGORY)
    # Its number is not given to another detector while the pointer still says it.
    assert store.publish(CATEGORY, write, activate=False) == 4


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = ModelStore(tmp_path / "elsewhere")
    elsewhere.publish(CATEGORY, write)
    before = snapshot(tmp_path / "elsewhere")
    store = ModelStore(tmp_path / "models")
    store.publish("wood", lambda folder, version: close(folder, version, "wood"))
    (store.root / CATEGORY).symlink_to(elsewhere.root / CATEGORY)
    (store.root / "cable").mkdir()
    (store.root / "cable" / "versions").symlink_to(elsewhere.root / CATEGORY / "versions")
    assert store.categories() == ["wood"]
    for category in (CATEGORY, "cable"):
        with pytest.raises(UnknownCategory):
            store.folder(category, 1)
        with pytest.raises(StoreError, match="is a symbolic link"):
            store.publish(category, write)
    (store.root / "wood" / "active").unlink()
    (store.root / "wood" / "active").symlink_to(elsewhere.root / CATEGORY / "active")
    with pytest.raises(ArtifactError, match="active cannot be read"):
        store.active("wood")
    (store.root / "wood" / "records").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a symbolic link"):
        store.record("wood", 1, "metrics", {})
    # A staging folder that is a link is removed; what it leads to is not.
    (store.root / "wood" / "versions" / ".staging").symlink_to(elsewhere.root)
    store.publish("wood", lambda folder, version: close(folder, version, "wood"))
    assert snapshot(tmp_path / "elsewhere") == before


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    store = ModelStore(tmp_path / "models")
    assert store.publish(CATEGORY, write) == store.active(CATEGORY) == 1


def test_a_root_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for root in (Path(), Path("models"), Path("../models")):
        store = ModelStore(root)
        assert store.publish(CATEGORY, write) == store.active(CATEGORY) == 1


def test_records_stand_beside_the_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    artifact = snapshot(store.folder(CATEGORY, 1))
    path = store.record(CATEGORY, 1, "metrics", {"image_auroc": 0.5})
    assert path == tmp_path / CATEGORY / "records" / "1" / "metrics.json"
    store.record(CATEGORY, 1, "metrics", {"image_auroc": 0.75, "per_defect": {"é": [1, None]}})
    store.record(CATEGORY, 1, "operating-point", {})
    assert store.records(CATEGORY, 1) == {
        "metrics": {"image_auroc": 0.75, "per_defect": {"é": [1, None]}},
        "operating-point": {},
    }
    assert snapshot(store.folder(CATEGORY, 1)) == artifact
    assert sorted(file.name for file in path.parent.iterdir()) == ["metrics.json", "operating-point.json"]
    with pytest.raises(UnknownVersion):
        store.record(CATEGORY, 2, "metrics", {})
    for payload in ({"auroc": float("nan")}, {"path": tmp_path}):
        with pytest.raises(ValueError, match="record 'metrics' is not JSON"):
            store.record(CATEGORY, 1, "metrics", payload)
    assert store.records(CATEGORY, 1)["metrics"]["image_auroc"] == 0.75


def test_a_number_that_has_records_is_not_given_again(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for version in (1, 2):
        store.publish(CATEGORY, write)
        store.record(CATEGORY, version, "metrics", {"version": version})
    store.activate(CATEGORY, 1)
    shutil.rmtree(store.folder(CATEGORY, 2))
    assert store.publish(CATEGORY, write) == 3
    assert store.records(CATEGORY, 3) == {}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"half": ', b"\xff", b"[" * 10**5])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    store.record(CATEGORY, 1, "metrics", {}).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"records/1/metrics.json is damaged"):
        store.records(CATEGORY, 1)
