"""MVTec AD: its categories, its licence, and its official archive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.download import Archive, DownloadError, Progress, download, extract, require_space

OBJECTS = (
    "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper",
)  # fmt: skip
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
CATEGORIES = tuple(sorted(OBJECTS + TEXTURES))

LICENCE = """\
MVTec AD, copyright MVTec Software GmbH, is released under the Creative Commons
Attribution-NonCommercial-ShareAlike 4.0 International licence (CC BY-NC-SA 4.0):
https://creativecommons.org/licenses/by-nc-sa/4.0/
It may not be used for commercial purposes. Whoever publishes work that uses it cites
P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger: The MVTec Anomaly Detection Dataset,
International Journal of Computer Vision 129 (2021), and P. Bergmann, M. Fauser, D. Sattlegger,
C. Steger: MVTec AD, CVPR 2019. Home: https://www.mvtec.com/company/research/datasets/mvtec-ad"""

# The link that MVTec's page gives; size and SHA-256 as the anomalib project and others publish them.
ARCHIVE = Archive(
    url=(
        "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/"
        "mvtec_anomaly_detection.tar.xz"
    ),
    size=5_264_982_680,
    sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
)


def missing_categories(folder: Path) -> list[str]:
    """Which of the 15 categories are not in ``folder``."""
    return [category for category in CATEGORIES if not (folder / category / "train" / "good").is_dir()]


def fetch(
    folder: Path, *, url: str | None = None, keep_archive: bool = False, progress: Progress | None = None
) -> list[str]:
    """Download, check and unpack what is not in ``folder`` yet; the licence must have been accepted before.

    Args:
        folder: gets one folder a category; made if missing.
        url: a mirror of the archive; None for the official one.
        keep_archive: leave the archive there after it was unpacked.
        progress: told what is done, how much, of how much.

    Returns:
        The names that were added.

    Raises:
        DownloadError: see ``training.download``; also if the archive lacks a category.
    """
    if not missing_categories(folder):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    archive = ARCHIVE if url is None else replace(ARCHIVE, url=url)
    # Before hours of download: the images take about as much again, they are compressed already.
    have = sum(path.stat().st_size for path in folder.glob(f"{archive.name}*"))
    require_space(folder, 2 * archive.size - have)
    path = download(archive, folder, progress=progress)
    added = extract(path, folder, progress=progress)
    missing = missing_categories(folder)
    if missing:
        raise DownloadError(f"{path} was unpacked, but {folder} still lacks {', '.join(missing)}")
    if not keep_archive:
        path.unlink()
    return added
