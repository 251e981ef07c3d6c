"""An artifact reads back as it was written, and no change to any of its files goes unseen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from models.artifact import (
    FORMAT_VERSION,
    LIBRARIES,
    MANIFEST,
    ArtifactError,
    Manifest,
    read_manifest,
    verify,
    write_manifest,
)
from models.geometry import ScanGeometry

FILES = {"encoder.safetensors": b"weights" * 100, "density/bank.faiss": b"\x00\x01bank", "empty": b""}

names = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?\.bin", fullmatch=True)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def write_artifact(
    folder: Path, files: dict[str, bytes] = FILES, configuration: dict[str, JsonValue] | None = None
) -> Manifest:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return write_manifest(
        folder,
        category="bottle",
        version=3,
        configuration=configuration or {"encoder": "dense", "gamma": 0.25},
        geometry=ScanGeometry(),
        data_fingerprint="0" * 64,
    )


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=200), max_size=4), st.dictionaries(st.text(), json_values, max_size=4))
def test_reads_back_what_was_written(files: dict[str, bytes], configuration: dict[str, JsonValue]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = write_artifact(Path(folder), files, configuration or {"empty": None})
        assert verify(Path(folder)) == read_manifest(Path(folder)) == written
        assert written.configuration == (configuration or {"empty": None})
        assert written.files == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_the_manifest_says_what_was_asked(tmp_path: Path) -> None:
    manifest = write_artifact(tmp_path)
    assert (manifest.format_version, manifest.category, manifest.version) == (FORMAT_VERSION, "bottle", 3)
    assert manifest.geometry == ScanGeometry()
    assert manifest.data_fingerprint == "0" * 64
    assert manifest.created.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - manifest.created) < timedelta(hours=1)


def test_library_versions_are_those_installed(tmp_path: Path) -> None:
    versions = write_artifact(tmp_path).library_versions
    installed = {str(distribution.name).lower() for distribution in metadata.distributions()}
    assert versions == {name: metadata.version(name) for name in LIBRARIES if name in installed}
    assert {"torch", "numpy"} <= versions.keys()


def test_the_digest_can_be_recomputed_by_hand(tmp_path: Path) -> None:
    digest = write_artifact(tmp_path).digest
    text = (tmp_path / MANIFEST).read_text()
    assert hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest() == digest


def test_reading_needs_none_of_the_heavy_libraries() -> None:
    check = (
        "import sys, models.artifact, models.store\n"
        "sys.exit(', '.join({'torch', 'numpy', 'faiss', 'cv2'} & sys.modules.keys()) or None)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", check], cwd=root, check=False).returncode == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def replace_by_link(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["encoder.safetensors", "density/bank.faiss"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip, "altered"),
        (truncate, "altered"),
        (empty, "altered"),
        (extend, "altered"),
        (Path.unlink, "missing"),
        (replace_by_folder, "missing"),
        (replace_by_link, "not a plain file"),
    ],
)
def test_damage_to_a_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None], problem: str) -> None:
    folder = tmp_path / "kept" / "artifact"
    write_artifact(folder)
    damage(folder / name)
    with pytest.raises(ArtifactError, match=rf"\({problem}: '{name}'\)"):
        verify(folder)


def test_a_file_that_the_disk_does_not_give_back_is_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write_artifact(tmp_path, {"encoder.safetensors": b""})
    monkeypatch.setattr(hashlib, "file_digest", unreadable)
    with pytest.raises(ArtifactError, match=r"\(altered: 'encoder.safetensors'\)"):
        verify(tmp_path)


@pytest.mark.parametrize("damage", [flip, truncate, empty, extend, Path.unlink])
def test_damage_to_the_manifest_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_artifact(tmp_path)
    damage(tmp_path / MANIFEST)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_manifest(tmp_path)


def test_no_flipped_bit_of_the_manifest_goes_unseen(tmp_path: Path) -> None:
    write_artifact(tmp_path)
    path = tmp_path / MANIFEST
    text = path.read_bytes()
    for position in range(len(text)):
        changed = bytearray(text)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        with pytest.raises(ArtifactError):
            read_manifest(tmp_path)
    path.write_bytes(text)
    verify(tmp_path)


def test_what_was_added_is_named(tmp_path: Path) -> None:
    write_artifact(tmp_path)
    (tmp_path / "density" / "more.bin").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "link").symlink_to("density", target_is_directory=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match=r"extra: '.hidden', 'density/more.bin'; not a plain file: 'link', 'pipe'"):
        verify(tmp_path)


def test_every_problem_is_in_one_message(tmp_path: Path) -> None:
    write_artifact(tmp_path)
    flip(tmp_path / "encoder.safetensors")
    (tmp_path / "empty").unlink()
    (tmp_path / "new").touch()
    expected = r"missing: 'empty'; altered: 'encoder.safetensors'; extra: 'new'"
    with pytest.raises(ArtifactError, match=expected):
        verify(tmp_path)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, str(FORMAT_VERSION), None])
def test_an_unknown_format_says_which_is_read(tmp_path: Path, version: JsonValue) -> None:
    write_artifact(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    # A later format may have none of today's fields.
    (tmp_path / MANIFEST).write_text(json.dumps({"format_version": version, "everything": "else", "files": content}))
    reads = f"format version {version!r}; this build reads format version {FORMAT_VERSION}:"
    with pytest.raises(ArtifactError, match=reads):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{}", "{", "\x00", "[" * 100_000, json.dumps({"format_version": FORMAT_VERSION})]
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="is damaged"):
        read_manifest(tmp_path)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(ArtifactError, match=f"{folder} is not an artifact"):
            verify(folder)


def test_a_name_in_a_forged_manifest_leads_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    folder = tmp_path / "artifact"
    manifest = write_artifact(folder)
    files = manifest.files | {"../secret": hashlib.sha256(b"secret").hexdigest()}
    blank = manifest.model_copy(update={"files": files, "digest": "0" * 64}).model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(blank).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(blank | {"digest": digest}))
    with pytest.raises(ArtifactError, match=r"\(missing: '../secret'\)"):
        verify(folder)


def test_an_artifact_is_written_once(tmp_path: Path) -> None:
    write_artifact(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(ArtifactError, match="already has a manifest"):
        write_artifact(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_links_are_not_taken_into_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(__file__)
    with pytest.raises(ArtifactError, match="take out 'link'"):
        write_artifact(tmp_path)


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nan"):
        write_artifact(tmp_path, configuration={"gamma": float("nan")})
    assert not (tmp_path / MANIFEST).exists()


def test_an_artifact_is_on_the_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    write_artifact(tmp_path)
    assert set(flushed) == {tmp_path, tmp_path / "density", *(tmp_path / name for name in (*FILES, MANIFEST))}


def test_a_copy_is_as_good(tmp_path: Path) -> None:
    manifest = write_artifact(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert verify(tmp_path / "two") == manifest
