"""Synthetic products with defects, in the layout of MVTec AD, for demonstrations and tests.

Good images of a product differ strongly in what does not matter (light, exposure, colour, focus, noise, position,
benign texture); defects are local and moderate. Masks are exact: outside its mask a defective image equals, pixel by
pixel, the image of the same part without the defect.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.geometry import ScanGeometry
from training.synthetic import objects, textures
from training.synthetic.camera import GREY_LEVELS, Camera
from training.synthetic.canvas import Field, Layer, Scene, blend
from training.synthetic.defects import HOLE, MISSING_PART, SCRATCH, STAIN, missing_part, surface_defect

DEFAULT_SIZE = ScanGeometry().image_size
SMALLEST_SIZE = 64  # below it the thinnest structures and defects are no longer drawn

MASK_OPACITY = 0.04  # a defect of less opacity is left out of the image and of the mask
VISIBLE = 20.0  # mean difference in grey levels, before noise, that a defect makes
TRIES = 12  # defects drawn until one is visible; on a dark part none may be, then the most visible is kept

_SURFACE = (SCRATCH, HOLE, STAIN)
_DRAW: dict[str, tuple[Callable[[np.random.Generator, int], Scene], tuple[str, ...]]] = {
    "washer": (objects.washer, (*_SURFACE, MISSING_PART)),
    "cap": (objects.cap, (*_SURFACE, MISSING_PART)),
    "board": (objects.board, (*_SURFACE, MISSING_PART)),
    "fabric": (textures.fabric, _SURFACE),
    "tile": (textures.tile, _SURFACE),
}
PRODUCTS: tuple[str, ...] = tuple(_DRAW)


class SyntheticError(ValueError):
    """What was asked of the generator does not exist or cannot be written."""


@dataclass(frozen=True)
class Rendered:
    """One synthetic image.

    Args:
        image: (H, W, 3) RGB.
        flawless: (H, W, 3) the same part under the same conditions without the defect.
        mask: (H, W) where the two may differ; empty for a good part.
    """

    image: NDArray[np.uint8]
    flawless: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def defects_of(product: str) -> tuple[str, ...]:
    """The kinds of defect that ``product`` can have.

    Raises:
        SyntheticError: if there is no such product.
    """
    _check_product(product)
    return _DRAW[product][1]


def generate(
    out: Path,
    product: str,
    *,
    seed: int = 0,
    train: int = 100,
    test_good: int = 20,
    test_defects: int = 8,
    image_size: int = DEFAULT_SIZE,
) -> Path:
    """Write a data set of ``product`` to ``out/product``.

    The same seed gives the same bytes, and an image does not depend on how many others are asked for.

    Args:
        out: folder of the categories; made where missing.
        product: one of ``PRODUCTS``.
        seed: any integer.
        train: number of good training images, at least 1.
        test_good: number of good test images.
        test_defects: number of test images of each kind of defect.
        image_size: side of the images in pixels, at least 64.

    Returns:
        The product's folder.

    Raises:
        SyntheticError: if an argument is not one of these, or the product's folder already holds something.
    """
    _check_product(product)
    for name, count, least in (("train", train, 1), ("test_good", test_good, 0), ("test_defects", test_defects, 0)):
        if count < least:
            raise SyntheticError(f"{name} is {count}: ask for at least {least} images")
    _check_size(image_size)
    root = out / product
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise SyntheticError(f"{root} already exists and is not empty: remove it or choose another folder")

    for split, number in (("train", train), ("test", test_good)):
        for index in range(number):
            part = render(product, seed=seed, split=split, index=index, image_size=image_size)
            _write(root / split / "good" / f"{index:03d}.png", part.image[..., ::-1])
    for defect in defects_of(product):
        for index in range(test_defects):
            part = render(product, defect, seed=seed, split="test", index=index, image_size=image_size)
            _write(root / "test" / defect / f"{index:03d}.png", part.image[..., ::-1])
            mask = part.mask.astype(np.uint8) * np.uint8(GREY_LEVELS)
            _write(root / "ground_truth" / defect / f"{index:03d}_mask.png", mask)
    return root


def render(
    product: str,
    defect: str | None = None,
    *,
    seed: int = 0,
    split: str = "test",
    index: int = 0,
    image_size: int = DEFAULT_SIZE,
    shot: int = 0,
) -> Rendered:
    """One image of ``product``, as ``generate`` writes it, with the same image without its defect.

    Args:
        shot: from 1 on, the same part with the same defect under other light, by another camera.

    Raises:
        SyntheticError: if the product, the defect or the size does not exist.
    """
    _check_size(image_size)
    if defect is not None and defect not in defects_of(product):
        raise SyntheticError(f"{product} has no defect {defect!r}: choose one of {', '.join(defects_of(product))}")
    _check_product(product)

    words = (seed, product, split, defect or "good", index)
    rng = np.random.default_rng(_seed(*words))
    scene = _DRAW[product][0](rng, image_size)
    camera = Camera.random(rng, image_size)
    flaw = None if defect is None else _visible_flaw(rng, scene, camera, defect)
    if shot:
        camera = Camera.random(np.random.default_rng(_seed(*words, shot)), image_size)
    focused = camera.focused(scene.reflectance())
    flawless = camera.developed(camera.exposed(focused))
    if flaw is None:
        return Rendered(flawless, flawless, np.zeros((image_size, image_size), dtype=np.bool_))
    changed, mask = _flawed(scene, camera, focused, flaw)
    return Rendered(camera.developed(changed), flawless, mask)


def _visible_flaw(rng: np.random.Generator, scene: Scene, camera: Camera, defect: str) -> Layer:
    focused = camera.focused(scene.reflectance())
    exposed = camera.exposed(focused)
    tries: list[tuple[float, Layer]] = []
    for _ in range(TRIES):
        flaw = missing_part(rng, scene) if defect == MISSING_PART else surface_defect(rng, scene, defect)
        changed, mask = _flawed(scene, camera, focused, flaw)
        visible = float(np.abs(changed - exposed)[mask].mean()) * GREY_LEVELS
        tries.append((visible, flaw))
        if visible >= VISIBLE:
            break
    return max(tries, key=lambda attempt: attempt[0])[1]


def _flawed(scene: Scene, camera: Camera, focused: Field, flaw: Layer) -> tuple[Field, NDArray[np.bool_]]:
    """The scene with a flaw, exposed, and where it may differ from the scene without, which is ``focused``."""
    mask = camera.focused(flaw.alpha) > MASK_OPACITY
    defective = camera.focused(blend(scene.reflectance(), flaw.colour, flaw.alpha))
    return camera.exposed(np.where(mask[..., None], defective, focused)), mask


def _seed(seed: int, *names: str | int) -> int:
    """A number of its own for every image, whatever else is generated."""
    words = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:16])


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".png", pixels)
    path.write_bytes(data.tobytes())


def _check_product(product: str) -> None:
    if product not in _DRAW:
        raise SyntheticError(f"unknown product {product!r}: choose one of {', '.join(PRODUCTS)}")


def _check_size(image_size: int) -> None:
    if image_size < SMALLEST_SIZE:
        raise SyntheticError(f"image_size is {image_size}: ask for at least {SMALLEST_SIZE} pixels")
