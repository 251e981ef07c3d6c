"""An artifact of a few bytes, for the tests of the store."""

from __future__ import annotations

from pathlib import Path

from models.artifact import write_manifest
from models.geometry import ScanGeometry

CATEGORY = "bottle"
FILES = ("encoder.safetensors", "density/bank.faiss", "calibration.safetensors")


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
