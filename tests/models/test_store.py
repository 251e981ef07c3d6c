"""The store never shows half a version: not when a publisher dies at any step, and not when two publish at once."""

from __future__ import annotations

import json
import re
import shutil
import stat
import string
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.artifact import MANIFEST, ArtifactError, verify, write_manifest
from models.geometry import ScanGeometry
from models.store import InvalidCategoryName, ModelStore, StoreError, StoreNotFound, UnknownCategory, UnknownVersion

CATEGORY = "bottle"
FILES = ("encoder.safetensors", "density/bank.faiss", "calibration.safetensors")

# What the child processes of these tests share. They import nothing but the store, so that each costs little.
CHILD = """
import json, os, signal, sys
from pathlib import Path
from models.artifact import write_manifest
from models.geometry import ScanGeometry
from models.store import ModelStore

def step(event, path=""):
    pass

def write(folder, version):
    (folder / "density").mkdir()
    for name in ("encoder.safetensors", "density/bank.faiss", "calibration.safetensors"):
        with (folder / name).open("wb", buffering=0) as file:
            for part in range(3):
                step("part", str(folder / name))
                file.write(f"{os.getpid()} {part} ".encode() * 1000)
    write_manifest(folder, category="bottle", version=version, configuration={"by": os.getpid()},
                   geometry=ScanGeometry(), data_fingerprint="")
"""

# Publishes in one forked process after another, each killed one step later than the one before, until one lives.
# A step is what the interpreter reports before it touches a file system, and each flush and write besides.
KILLER = (
    CHILD
    + """
import shutil, traceback
before, out, first = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
AUDITED = {"open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "fcntl.flock"}
WRITING = {"write", "flush", "__exit__"}

def publish_and_die(root, last):
    global step
    events = []
    def step(event, path=""):
        events.append((event, os.path.relpath(path, root) if path else ""))
        if len(events) == last:
            os.kill(os.getpid(), signal.SIGKILL)
    def audit(event, arguments):
        if event in AUDITED:
            path = arguments[0] if isinstance(arguments[0], (str, Path)) else ""
            if not os.path.isabs(path) or str(path).startswith(str(root)):
                writing = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
                step("create" if writing else event, path)
    def profile(frame, event, function):
        if event == "c_call" and function.__name__ in WRITING:
            step(function.__name__)
    fsync = os.fsync
    def reported_fsync(descriptor):
        step("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)
    os.fsync = reported_fsync
    sys.addaudithook(audit)
    sys.setprofile(profile)
    ModelStore(root).publish("bottle", write)
    sys.setprofile(None)
    (out / "events.json").write_text(json.dumps(events))

for last in range(first, first + 1000):
    root = out / str(last)
    if before.exists():
        shutil.copytree(before, root)
    process = os.fork()
    if process == 0:
        try:
            publish_and_die(root, last)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
"""
)


def write(folder: Path, version: int) -> None:
    (folder / "density").mkdir()
    for name in FILES:
        (folder / name).write_bytes(f"{name} {version}".encode())
    close(folder, version)


def close(folder: Path, version: int, category: str = CATEGORY) -> None:
    write_manifest(
        folder,
        category=category,
        version=version,
        configuration={},
        geometry=ScanGeometry(),
        data_fingerprint="",
    )


def child(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=Path(__file__).parents[2], text=True, **options
    )


def kill_at_every_step(before: Path, out: Path, first: int = 1) -> list[tuple[str, str]]:
    """Publish into copies of ``before``, ``out/<step>``; returns the (event, path) steps of the run that lived."""
    out.mkdir()
    assert child(KILLER, before, out, first).wait() == 0
    return [(event, path) for event, path in json.loads((out / "events.json").read_text())]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def nothing(root: Path) -> list[int]:
    return []


def a_version_and_what_the_dead_left(root: Path) -> list[int]:
    versions = [ModelStore(root).publish(CATEGORY, write)]
    staging = root / CATEGORY / "versions" / ".staging"
    (staging / "density").mkdir(parents=True)
    (staging / "density" / "bank.faiss").write_bytes(b"half a ba")
    (staging / "encoder.safetensors").touch(mode=0o444)
    (root / CATEGORY / ".active.new").write_text("")
    return versions


@pytest.mark.parametrize("prepare", [nothing, a_version_and_what_the_dead_left])
def test_killing_a_publisher_at_every_step_never_leaves_half_a_version(
    tmp_path: Path, prepare: Callable[[Path], list[int]]
) -> None:
    before = tmp_path / "before"
    old = prepare(before)
    new = len(old) + 1
    events = kill_at_every_step(before, tmp_path / "killed")

    complete = activated = False
    for last in range(1, len(events) + 2):  # the last one was not killed
        root = tmp_path / "killed" / str(last)
        store = ModelStore(root)
        versions = store.versions(CATEGORY) if root.is_dir() and store.categories() else []
        assert versions in ([*old, new], [new]) if complete else versions in (old, [*old, new])
        complete = new in versions
        for version in versions:
            assert verify(store.folder(CATEGORY, version)).version == version
        if versions:
            active = store.active(CATEGORY)
            assert active == new if activated else active in (old[0] if old else None, new)
            activated = active == new
            assert complete or not activated

        following = store.publish(CATEGORY, write)
        assert following == len(versions) + 1
        assert store.versions(CATEGORY) == [*versions, following]
        assert store.active(CATEGORY) == following
        assert {path.name for path in (root / CATEGORY).iterdir()} == {"versions", "active", ".lock"}
        assert {path.name for path in (root / CATEGORY / "versions").iterdir()} == {
            str(v) for v in [*versions, following]
        }
    assert complete
    assert activated

    # That the kills fell where they should: on every file, and on both renames.
    staging = f"{CATEGORY}/versions/.staging"
    for name in (*FILES, MANIFEST):
        for event in ("create", "os.chmod", "fsync"):
            assert (event, f"{staging}/{name}") in events
    assert {path for event, path in events if event == "os.rename"} == {staging, f"{CATEGORY}/.active.new"}


def test_everything_is_on_the_disk_before_the_rename_that_shows_it(tmp_path: Path) -> None:
    events = kill_at_every_step(tmp_path / "before", tmp_path / "alive", first=1_000_000)
    versions, staging, new_pointer = f"{CATEGORY}/versions", f"{CATEGORY}/versions/.staging", f"{CATEGORY}/.active.new"
    shown = events.index(("os.rename", staging))
    pointed = events.index(("os.rename", new_pointer))

    created = {path for event, path in events[:shown] if event == "create" and path.startswith(staging)}
    assert created == {f"{staging}/{name}" for name in (*FILES, MANIFEST)}
    for path in created:
        last_change = max(
            i for i, event in enumerate(events[:shown]) if event in (("os.chmod", path), ("create", path))
        )
        assert ("fsync", path) in events[last_change:shown]
    for folder in (staging, f"{staging}/density"):
        assert ("fsync", folder) in events[events.index(("create", f"{staging}/{MANIFEST}")) : shown]
    assert ("fsync", versions) in events[shown:pointed]
    assert ("fsync", new_pointer) in events[events.index(("create", new_pointer)) : pointed]
    assert ("fsync", CATEGORY) in events[pointed:]
    for created_folder, parent in ((".", ".."), (CATEGORY, "."), (versions, CATEGORY)):
        assert ("fsync", parent) in events[events.index(("os.mkdir", created_folder)) : shown]


def test_two_processes_publish_at_once_and_a_reader_sees_whole_versions_only(tmp_path: Path) -> None:
    code = CHILD + 'for _ in range(15): print(ModelStore(Path(sys.argv[1])).publish("bottle", write))'
    root = tmp_path / "models"
    publishers = [child(code, root, stdout=subprocess.PIPE) for _ in range(2)]
    store = ModelStore(root)
    seen = 0
    while any(publisher.poll() is None for publisher in publishers):
        if not root.is_dir() or not store.categories():
            continue
        active = store.active(CATEGORY)
        assert (active or 0) >= seen
        seen = active or 0
        verify(store.folder(CATEGORY, store.versions(CATEGORY)[-1]))
    numbers = [[int(line) for line in publisher.communicate()[0].split()] for publisher in publishers]
    assert [publisher.returncode for publisher in publishers] == [0, 0]
    assert sorted(numbers[0] + numbers[1]) == store.versions(CATEGORY) == list(range(1, 31))
    assert store.active(CATEGORY) == 30
    for publisher, own in zip(publishers, numbers, strict=True):
        assert {verify(store.folder(CATEGORY, number)).configuration["by"] for number in own} == {publisher.pid}


@pytest.mark.parametrize("dies", [False, True])
def test_a_publisher_waits_for_the_one_before_it_dead_or_alive(tmp_path: Path, dies: bool) -> None:
    code = CHILD + (
        "def slow(folder, version):\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    write(folder, version)\n"
        "ModelStore(Path(sys.argv[1])).publish('bottle', slow)\n"
    )
    first = child(code, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == "writing\n"
    second = threading.Thread(target=ModelStore(tmp_path).publish, args=(CATEGORY, write))
    second.start()
    if dies:
        first.kill()
    first.communicate("" if dies else "go on\n")
    second.join()
    assert ModelStore(tmp_path).versions(CATEGORY) == ([1] if dies else [1, 2])
    assert ModelStore(tmp_path).active(CATEGORY) == (1 if dies else 2)


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


def test_a_root_that_does_not_exist(tmp_path: Path) -> None:
    root = tmp_path / "some" / "models"
    store = ModelStore(root)
    for request in (store.categories, lambda: store.versions(CATEGORY), lambda: store.active(CATEGORY)):
        with pytest.raises(StoreNotFound, match=f"no model store at {root}"):
            request()
    assert not root.exists()
    assert store.publish(CATEGORY, write) == 1


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


@pytest.mark.parametrize("content", [b"", b"[]", b'{"half": ', b"\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    store.record(CATEGORY, 1, "metrics", {}).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"records/1/metrics.json is damaged"):
        store.records(CATEGORY, 1)
