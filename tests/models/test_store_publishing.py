"""The store never shows half a version: not when a publisher dies at any step, and not when two publish at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.artifact import MANIFEST, ArtifactError, verify
from models.store import ModelStore
from models.store_category import CategoryFolder
from models.store_errors import RecordExists
from tests.models.support import CATEGORY, FILES, close, write

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


def child(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=Path(__file__).parents[2], text=True, **options
    )


def kill_at_every_step(before: Path, out: Path, first: int = 1) -> list[tuple[str, str]]:
    """Publish into copies of ``before``, ``out/<step>``; returns the (event, path) steps of the run that lived."""
    out.mkdir()
    assert child(KILLER, before, out, first).wait() == 0
    return [(event, path) for event, path in json.loads((out / "events.json").read_text())]


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
        assert {path.name for path in (root / CATEGORY).iterdir()} == {
            "versions", "active", "activations.json", ".lock"
        }  # fmt: skip
        assert store.activations(CATEGORY)[-1].version == following
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
    renamed = [path for event, path in events if event == "os.rename"]
    assert renamed == [staging, f"{CATEGORY}/.active.new", f"{CATEGORY}/.activations.json.new"]


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


WRITERS: dict[str, Callable[[ModelStore], object]] = {
    "activate": lambda store: store.activate(CATEGORY, 1),
    "shadow": lambda store: store.set_shadow(CATEGORY, 1),
    "record": lambda store: store.record(CATEGORY, 1, "metrics", {}),
}


@pytest.mark.parametrize("write_one", WRITERS.values(), ids=WRITERS)
def test_whoever_writes_waits_for_the_one_before(tmp_path: Path, write_one: Callable[[ModelStore], object]) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    writer = threading.Thread(target=write_one, args=(store,))
    with CategoryFolder(tmp_path, CATEGORY).lock():
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
    writer.join(60)
    assert not writer.is_alive()


def test_records_of_a_new_version_are_there_as_soon_as_it_is(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    rename = Path.rename
    found: list[dict[str, dict[str, Any]]] = []

    def watched(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if target == tmp_path / CATEGORY / "versions" / "1":
            found.append(store.records(CATEGORY, 1))
        return moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", watched)
        store.publish(CATEGORY, write, records={"operation-1": {"number": 1}})
    assert found == [{"operation-1": {"number": 1}}]


def test_a_version_that_is_not_published_leaves_no_records(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(ArtifactError):
        store.publish(CATEGORY, lambda folder, version: close(folder, version + 1), records={"metrics": {}})
    with pytest.raises(ValueError, match="not JSON"):
        store.publish(CATEGORY, write, records={"metrics": {"auroc": float("nan")}})

    def refused(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(PermissionError):
            store.publish(CATEGORY, write, records={"metrics": {}})
    assert store.publish(CATEGORY, write) == 1
    assert store.records(CATEGORY, 1) == {}


def test_a_record_that_is_written_once_is_not_replaced(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, write)
    store.record(CATEGORY, 1, "operation-1", {"number": 1}, replace=False)
    with pytest.raises(RecordExists, match="operation-1"):
        store.record(CATEGORY, 1, "operation-1", {"number": 7}, replace=False)
    assert store.records(CATEGORY, 1) == {"operation-1": {"number": 1}}
