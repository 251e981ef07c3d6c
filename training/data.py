"""Image folders on disk: MVTec AD's layout or a plain folder of good images, decoded and split for calibration.

Layout of a category: ``train/good``, ``test/good``, ``test/<defect>``, ``ground_truth/<defect>``, where the mask of
``test/<defect>/000.png`` is ``000_mask.png`` or ``000.png``, in any accepted format. Hidden files are ignored.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.images import EXTENSIONS, ImageError, Placement, ResizeMode, place_image, place_mask, read_image, read_mask

GOOD = "good"


class DataError(ValueError):
    """A data folder that cannot be used as it is; the message names the file or folder and says what to do."""


@dataclass(frozen=True)
class Sample:
    """A test image: ``defect`` is the name of its folder, "good" for a normal one, which has no mask."""

    path: Path
    defect: str
    mask: Path | None


@dataclass(frozen=True)
class Dataset:
    """The images of one category: good ones to learn from, and test samples if there are any.

    Attributes:
        skipped: files that are not images, with the reason; only under ``skip_broken``.
    """

    category: str
    root: Path
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    skipped: tuple[tuple[Path, str], ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 over the names (relative to the category's folder) and the contents of the training images."""
        digest = hashlib.sha256()
        for path in sorted(self.train):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(os.fsencode(f"{path.relative_to(self.root).as_posix()}\0{content}\n"))
        return digest.hexdigest()


@dataclass(frozen=True)
class LoadedImages:
    """Decoded images at the size of a scan.

    Attributes:
        images: (N, size, size, 3) uint8 RGB, in the order of the paths asked for.
        paths: the N paths that were read.
        placements: how each original lies in its square.
        skipped: paths that were passed over, with the reason: those that could not be read, under ``skip_broken``, and
            copies.
    """

    images: NDArray[np.uint8]
    paths: tuple[Path, ...]
    placements: tuple[Placement, ...]
    skipped: tuple[tuple[Path, str], ...]

    def without_copies(self) -> LoadedImages:
        """These, but of images with the same pixels only the first; the others are among the skipped."""
        first: dict[bytes, int] = {}
        kept, skipped = [], []
        for number, (image, path) in enumerate(zip(self.images, self.paths, strict=True)):
            original = first.setdefault(hashlib.sha256(image.tobytes()).digest(), number)
            if original == number:
                kept.append(number)
            else:
                skipped.append((path, f"shows the same, pixel by pixel, as {self.paths[original]}"))
        if not skipped:
            return self
        return LoadedImages(
            self.images[kept],
            tuple(self.paths[number] for number in kept),
            tuple(self.placements[number] for number in kept),
            (*self.skipped, *skipped),
        )


def find_categories(data: Path) -> list[str]:
    """Names of the categories under ``data`` (subfolders with ``train/good``), or the name of ``data`` if it is one.

    Raises:
        DataError: there is no such folder, or no category in it.
    """
    return list(_category_folders(data))


def open_dataset(data: Path, category: str | None, *, skip_broken: bool | None = None) -> Dataset:
    """Find the images of a category.

    Args:
        data: the folder that holds the categories, a category's own folder, or a plain folder of good images.
        category: which category; None where there is only one. A category's own folder and a plain folder are taken
            under any name, and by default under the folder's.
        skip_broken: leave out files that are no images by their extension, instead of refusing the folder; None where
            whoever asks cannot choose, so that no error advises it.

    Raises:
        DataError: nothing there, an unknown category (naming those that exist), a foreign file, a missing mask.
    """
    folders = _category_folders(data)
    if data in folders.values():
        return _open_category(data, category or next(iter(folders)), skip_broken)
    names = ", ".join(folders)
    if category is None:
        if len(folders) > 1:
            raise DataError(f"{data} holds several categories; name one of {names}")
        category = next(iter(folders))
    if category not in folders:
        raise DataError(f"{data} has no category {category!r}; it has {names}")
    return _open_category(folders[category], category, skip_broken)


def load_images(
    paths: Sequence[Path],
    *,
    size: int,
    mode: ResizeMode,
    skip_broken: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> LoadedImages:
    """Decode and resize images on several threads, in order.

    Args:
        paths: image files.
        size: side of the square that each is placed in, in pixels.
        mode: see ``models.images.Placement``.
        skip_broken: collect the files that cannot be read instead of stopping at the first; None as in
            ``open_dataset``.
        progress: called after every image with the number done and the number of all.
        threads: how many decode at a time; None for one per CPU.

    Raises:
        DataError: a file cannot be read (naming it); under ``skip_broken``, if none can.
    """

    def load(path: Path) -> tuple[NDArray[np.uint8], Placement] | str:
        try:
            return place_image(read_image(path), size, mode)
        except ImageError as error:
            if skip_broken:
                return str(error).removeprefix(f"{path}: ")
            # Raised here and not in the loop below, so that the images still waiting are cancelled.
            raise DataError(f"{error}. Mend or remove the file{_or_skip(skip_broken)}") from error

    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    kept: list[Path] = []
    placements: list[Placement] = []
    skipped: list[tuple[Path, str]] = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for done, (path, loaded) in enumerate(zip(paths, pool.map(load, paths), strict=True), start=1):
            if isinstance(loaded, str):
                skipped.append((path, loaded))
            else:
                images[len(kept)], placement = loaded
                kept.append(path)
                placements.append(placement)
            if progress is not None:
                progress(done, len(paths))
    if skipped and not kept:
        raise DataError(f"none of {len(paths)} files could be read; the first, {skipped[0][0]}: {skipped[0][1]}")
    return LoadedImages(images[: len(kept)], tuple(kept), tuple(placements), tuple(skipped))


def load_mask(sample: Sample, placement: Placement) -> NDArray[np.bool_]:
    """The ground truth of a test image.

    Args:
        sample: the image.
        placement: how it lies in the square of a scan.

    Returns:
        (size, size) bool, as the image lies in the square; empty where the sample has no mask.

    Raises:
        ImageError: the mask cannot be read.
        DataError: it does not have its image's size.
    """
    if sample.mask is None:
        return np.zeros((placement.size, placement.size), dtype=np.bool_)
    mask = read_mask(sample.mask)
    if mask.shape != (placement.original_height, placement.original_width):
        raise DataError(
            f"{sample.mask} is {mask.shape[1]}x{mask.shape[0]} pixels but its image {sample.path} is "
            f"{placement.original_width}x{placement.original_height}: a mask must have its image's size"
        )
    return place_mask(mask, placement.size, placement.mode)


def split_calibration(
    paths: Sequence[Path], *, fraction: float, seed: int, group_pattern: str | None
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Set good images aside for calibration, whole parts or lots at a time.

    Groups are taken in a seeded order, each only if it brings the share closer to ``fraction``; both sides get at least
    one. The order depends on the groups' names and the seed, not on the order of ``paths``.

    Args:
        paths: good images.
        fraction: share of the images to set aside, in (0, 1).
        seed: of the order.
        group_pattern: regular expression, searched in the file name; its first group names the part or lot. None if
            every image shows a part of its own.

    Returns:
        The images to fit on and those to calibrate on; disjoint, each in the order of ``paths``.

    Raises:
        DataError: a file name that does not match, a pattern without a group, fewer than two groups.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the calibration fraction is {fraction}; it must lie between 0 and 1")
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, name in zip(paths, _group_names(paths, group_pattern), strict=True):
        groups[name].append(path)
    if len(groups) < 2:
        what = "images" if group_pattern is None else f"groups by {group_pattern!r}"
        raise DataError(f"calibration needs images of its own: at least 2 {what}, there are {len(groups)}")
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    target = fraction * len(paths)
    chosen: set[str] = set()
    count = 0
    for name in order:
        size = len(groups[name])
        if len(chosen) < len(groups) - 1 and abs(count + size - target) < abs(count - target):
            chosen.add(name)
            count += size
    if not chosen:
        chosen.add(min(order, key=lambda name: len(groups[name])))
    calibration = {path for name in chosen for path in groups[name]}
    return tuple(path for path in paths if path not in calibration), tuple(
        path for path in paths if path in calibration
    )


def _group_names(paths: Sequence[Path], group_pattern: str | None) -> list[str]:
    if group_pattern is None:
        return [path.as_posix() for path in paths]
    try:
        pattern = re.compile(group_pattern)
    except re.error as error:
        raise DataError(f"the group pattern {group_pattern!r} is not a regular expression: {error}") from error
    if pattern.groups < 1:
        raise DataError(f"the group pattern {group_pattern!r} has no group: put the part or lot in (parentheses)")
    names = []
    for path in paths:
        match = pattern.search(path.name)
        if match is None or match.group(1) is None:
            raise DataError(f"{path}: the file name does not match the group pattern {group_pattern!r}")
        names.append(match.group(1))
    return names


def _category_folders(data: Path) -> dict[str, Path]:
    if not data.is_dir():
        raise DataError(f"{data} {'is a file, not a folder' if data.exists() else 'does not exist'}")
    inside = {} if _is_category(data) else {folder.name: folder for folder in _visible(data) if _is_category(folder)}
    if inside:
        return inside
    if _is_category(data) or any(path.suffix.lower() in EXTENSIONS for path in _visible(data)):
        return {data.resolve().name: data}
    raise DataError(
        f"{data} holds no category: expected <category>/train/{GOOD}/*, train/{GOOD}/* or good images, "
        f"with one of {', '.join(EXTENSIONS)}"
    )


def _open_category(root: Path, category: str, skip_broken: bool | None) -> Dataset:
    skipped: list[tuple[Path, str]] = []
    if not _is_category(root):
        return Dataset(category, root, _images(root, skip_broken, skipped), (), tuple(skipped))
    train = _images(root / "train" / GOOD, skip_broken, skipped)
    test: list[Sample] = []
    for folder in _visible(root / "test"):
        if not folder.is_dir():
            _refuse_or_skip(folder, "test images lie in a folder named after their defect", skip_broken, skipped)
            continue
        images = _images(folder, skip_broken, skipped)
        if folder.name == GOOD:
            test += [Sample(path, GOOD, None) for path in images]
        else:
            masks = _find_masks(images, root / "ground_truth" / folder.name)
            test += [Sample(path, folder.name, mask) for path, mask in zip(images, masks, strict=True)]
    return Dataset(category, root, train, tuple(test), tuple(skipped))


def _images(folder: Path, skip_broken: bool | None, skipped: list[tuple[Path, str]]) -> tuple[Path, ...]:
    images = []
    for path in _visible(folder):
        if path.is_dir() or path.suffix.lower() not in EXTENSIONS:
            what = "a folder" if path.is_dir() else "not an image by its extension"
            _refuse_or_skip(path, f"{what}; accepted are {', '.join(EXTENSIONS)}", skip_broken, skipped)
        else:
            images.append(path)
    if not images:
        raise DataError(f"{folder} holds no images ({', '.join(EXTENSIONS)})")
    return tuple(images)


def _refuse_or_skip(path: Path, reason: str, skip_broken: bool | None, skipped: list[tuple[Path, str]]) -> None:
    if not skip_broken:
        raise DataError(f"{path}: {reason}. Remove it{_or_skip(skip_broken)}")
    skipped.append((path, reason))


def _or_skip(skip_broken: bool | None) -> str:
    """The end of an error's advice; a command without the option cannot give it."""
    return "" if skip_broken is None else ", or skip such files (--skip-broken)"


def _find_masks(images: Sequence[Path], folder: Path) -> list[Path]:
    by_stem = {path.stem: path for path in _visible(folder) if path.suffix.lower() in EXTENSIONS}
    masks = []
    for image in images:
        mask = by_stem.get(f"{image.stem}_mask") or by_stem.get(image.stem)
        if mask is None:
            expected = f"{image.stem}_mask.png or {image.stem}.png in {folder}"
            raise DataError(f"{image}: its mask is missing; expected {expected}")
        masks.append(mask)
    return masks


def _is_category(folder: Path) -> bool:
    return (folder / "train" / GOOD).is_dir()


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
