"""Products that fill the image: a woven fabric and a speckled stone tile."""

from __future__ import annotations

import numpy as np

from training.synthetic.canvas import SIDE, Field, Frame, Scene, blend, noise, tinted

YARN = 2.9  # distance between neighbouring yarns


def fabric(rng: np.random.Generator, size: int) -> Scene:
    """A twill of warm and cool yarns, slightly turned and drawn out of shape, each yarn a little different."""
    frame = Frame.of_image(size)
    cloth = frame.moved(rng.uniform(-YARN, YARN), rng.uniform(-YARN, YARN), rng.uniform(-4, 4))
    pull = rng.uniform(0.1, 0.5)
    across = cloth.x + pull * noise(rng, size, 25.0)
    along = cloth.y + pull * noise(rng, size, 25.0)
    spacing = YARN * rng.uniform(0.96, 1.04)

    warp, warp_shade = _yarns(rng, frame, across, along, spacing)
    weft, weft_shade = _yarns(rng, frame, along, across, spacing)
    # A 2/2 twill: the warp lies above for two crossings, then below for two, one crossing later on each weft.
    warp_above = np.mod(warp + weft, 4) < 2
    warp_float = np.mod(warp + along / np.float32(spacing), 4) / 2  # 0 to 1 from where it comes up to where it dives
    weft_float = np.mod(weft + across / np.float32(spacing) - 2, 4) / 2
    bulge = np.sqrt(np.clip(1 - (2 * np.where(warp_above, warp_float, weft_float) - 1) ** 2, 0, 1))
    shade = np.where(warp_above, warp_shade, weft_shade) * (0.7 + 0.3 * bulge)
    dye = 0.06 * rng.standard_normal(3)
    warp_colour = tinted(shade, (0.62 + dye[0], 0.56 + dye[0], 0.46 + dye[0]))
    weft_colour = tinted(shade, (0.36 + dye[1], 0.42 + dye[1], 0.50 + dye[1]))
    image = np.where(warp_above[..., None], warp_colour, weft_colour)
    fuzz = 1 + rng.uniform(0.02, 0.07) * noise(rng, size, 0.5)
    return Scene(np.asarray(image * fuzz[..., None], dtype=np.float32), np.ones((size, size), dtype=np.float32))


def tile(rng: np.random.Generator, size: int) -> Scene:
    """A polished speckled stone: cloudy ground, dark and light flecks of varying number."""
    cloud = 0.6 * noise(rng, size, 14.0) + 0.4 * noise(rng, size, 6.0)
    fine = noise(rng, size, 0.9)
    ground = 0.55 * (1 + rng.uniform(0.02, 0.09) * cloud + rng.uniform(0.02, 0.04) * fine)
    warmth = rng.uniform(-0.05, 0.05)
    image = tinted(np.asarray(ground, dtype=np.float32), (1.02 + warmth, 0.98, 0.93 - warmth))

    flecks = (
        # period, share of deviations that stay bare, colour
        (1.5, rng.uniform(1.2, 1.5), (0.42, 0.40, 0.39)),
        (1.1, rng.uniform(1.3, 1.6), (0.34, 0.33, 0.34)),
        (1.3, rng.uniform(1.3, 1.6), (0.70, 0.67, 0.62)),
        (0.9, rng.uniform(1.5, 1.9), (0.56, 0.44, 0.37)),
    )
    for period, level, colour in flecks:
        stretched = (period * rng.uniform(0.8, 1.25), period * rng.uniform(0.8, 1.25))
        opacity = np.clip((noise(rng, size, stretched) - level) * 4, 0, 0.9)
        image = blend(image, tinted(1 + np.float32(0.05) * fine, colour), np.asarray(opacity, dtype=np.float32))
    return Scene(image, np.ones((size, size), dtype=np.float32))


def _yarns(rng: np.random.Generator, frame: Frame, across: Field, along: Field, spacing: float) -> tuple[Field, Field]:
    """Number of the yarn (H, W) that lies under each pixel of one yarn system, and the yarn's shade."""
    position = across / np.float32(spacing)
    number = np.floor(position)
    inside = position - number - 0.5  # -0.5 to 0.5 across the yarn
    count = int(np.ceil(2 * SIDE / spacing))
    thickness = 1 + rng.uniform(0.02, 0.08) * rng.standard_normal(count)
    own = thickness[np.mod(number, count).astype(np.intp)]
    roundness = np.sqrt(np.clip(1 - (1.75 * inside) ** 2, 0, 1))
    ply = np.sin(2 * np.pi * (along / np.float32(0.55 * spacing) + inside))
    shade = own * (0.5 + 0.5 * roundness) * (1 + 0.06 * ply)
    if frame.pixel > spacing / 4:  # the plies of a yarn are finer than the pixels
        shade = own * (0.5 + 0.5 * roundness)
    return np.asarray(number, dtype=np.float32), np.asarray(shade, dtype=np.float32)
