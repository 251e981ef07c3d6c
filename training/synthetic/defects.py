"""What can be wrong with a product: scratches, holes, stains and missing parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.synthetic.canvas import SIDE, Field, Frame, Layer, Scene, noise

SCRATCH, HOLE, STAIN, MISSING_PART = "scratch", "hole", "stain", "missing_part"

# From subtle to obvious. Lengths are in percent of the image's side, depths are fractions of what the defect covers.
SCRATCH_WIDTH = (1.0, 1.7)
SCRATCH_LENGTH = (12.0, 47.0)
SCRATCH_DEPTH = (0.55, 0.95)
HOLE_RADIUS = (2.0, 4.7)
HOLE_DEPTH = (0.45, 0.75)
STAIN_RADIUS = (3.5, 9.4)
STAIN_DEPTH = (0.3, 0.55)

MARGIN = 6.0  # least distance of a defect's middle from the image's edge
TRIES = 20  # places tried until enough of a defect lies on the product
ON_PRODUCT = 0.8  # the share of a defect that must


def surface_defect(rng: np.random.Generator, scene: Scene, kind: str) -> Layer:
    """A scratch, hole or stain somewhere on the product's surface, to be laid over the complete product."""
    frame = Frame.of_image(scene.surface.shape[0])
    reflectance = scene.reflectance()
    within = np.maximum(np.abs(frame.x), np.abs(frame.y)) < SIDE / 2 - MARGIN
    places = np.flatnonzero((scene.surface > 0.99) & within)
    candidates: list[tuple[float, Layer]] = []
    for _ in range(TRIES):
        place = rng.choice(places)
        local = frame.moved(float(frame.x.flat[place]), float(frame.y.flat[place]), rng.uniform(0, 360))
        whole = _SURFACE_DEFECTS[kind](rng, local, reflectance)
        layer = Layer(whole.colour, whole.alpha * scene.surface)
        candidates.append((float(layer.alpha.sum() / whole.alpha.sum()), layer))
        if candidates[-1][0] >= ON_PRODUCT:
            break
    return max(candidates, key=lambda candidate: candidate[0])[1]


def missing_part(rng: np.random.Generator, scene: Scene) -> Layer:
    """What lies under one of the parts, to be laid over the complete product."""
    number = int(rng.integers(len(scene.parts)))
    part = scene.parts[number]
    alpha = np.zeros_like(scene.surface)
    # Opaque wherever the part has any opacity: its own soft edge is already in the picture with it.
    alpha[part.window] = part.alpha > 0
    return Layer(scene.reflectance(without=number), alpha)


def _scratch(rng: np.random.Generator, local: Frame, reflectance: Field) -> Layer:
    """A bent groove, thin at both ends: one flank lit and the other in shade, or all of it bright or dark."""
    length = rng.uniform(*SCRATCH_LENGTH)
    width = max(rng.uniform(*SCRATCH_WIDTH), 1.6 * local.pixel)
    along = local.x / length  # -0.5 to 0.5 on the scratch
    bend = rng.uniform(-0.4, 0.4)
    waves = rng.uniform(1, 3)
    wobble = rng.uniform(0, 0.012) * np.sin(2 * np.pi * (waves * along + rng.uniform()))
    aside = (local.y - length * (bend * along**2 + wobble)) / np.sqrt(1 + (2 * bend * along) ** 2)
    taper = np.sqrt(np.clip(1 - (2 * along) ** 2, 0, 1))
    alpha = local.coverage(np.abs(aside) - 0.5 * width * taper) * (taper > 0)

    depth = rng.uniform(*SCRATCH_DEPTH)
    lit = rng.choice([-1.0, 1.0])
    flank = np.clip(4 * aside / width, -1, 1) if rng.uniform() < 0.6 else np.ones_like(aside)
    return Layer(_scaled(reflectance, 1 + lit * depth * flank), np.asarray(alpha, dtype=np.float32))


def _hole(rng: np.random.Generator, local: Frame, reflectance: Field) -> Layer:
    """A pit of irregular outline: its floor has lost the texture, one wall is in shade and the other is lit."""
    radius = max(rng.uniform(*HOLE_RADIUS), 2 * local.pixel)
    outline = local.radius / _irregular(rng, local, roughness=0.1) - radius
    alpha = local.coverage(outline)
    depth = rng.uniform(*HOLE_DEPTH)
    around = (reflectance * alpha[..., None]).sum(axis=(0, 1)) / alpha.sum()
    lamp = rng.uniform(0, 2 * np.pi)
    wall = np.clip(1 + outline / (0.45 * radius), 0, 1)  # 0 on the floor, 1 at the edge
    shade = 1 - depth + 0.9 * depth * wall * np.cos(local.angle - lamp) + 0.04 * noise(rng, local.x.shape[0], 0.8)
    floor = np.asarray(0.8 * around + 0.2 * reflectance, dtype=np.float32)
    return Layer(_scaled(floor, shade), alpha)


def _stain(rng: np.random.Generator, local: Frame, reflectance: Field) -> Layer:
    """A dried drop: a tint through which the texture shows, darker towards its soft edge."""
    radius = rng.uniform(*STAIN_RADIUS)
    stretch = rng.uniform(1.0, 1.5)
    oval = Frame(local.x * np.float32(stretch**0.5), local.y / np.float32(stretch**0.5), local.pixel)
    inside = radius - oval.radius / _irregular(rng, oval, roughness=0.08)
    softness = rng.uniform(0.4, 0.9)
    alpha = np.clip(inside / softness, 0, 1)
    depth = rng.uniform(*STAIN_DEPTH)
    edge = np.exp(-(((inside - softness) / 1.2) ** 2))
    strength = depth * (0.6 + 0.4 * edge + 0.08 * noise(rng, local.x.shape[0], 5.0))
    absorbed = np.array([0.7, 0.95, 1.25], dtype=np.float32) if rng.uniform() < 0.5 else np.ones(3, dtype=np.float32)
    return Layer(_scaled(reflectance, 1 - strength[..., None] * absorbed), np.asarray(alpha, dtype=np.float32))


_SURFACE_DEFECTS: dict[str, Callable[[np.random.Generator, Frame, Field], Layer]] = {
    SCRATCH: _scratch,
    HOLE: _hole,
    STAIN: _stain,
}


def _irregular(rng: np.random.Generator, frame: Frame, roughness: float) -> Field:
    """Factor (H, W) on the radius of an outline, a sum of waves around the frame's origin."""
    waves = np.ones_like(frame.angle)
    for order in (2, 3, 5, 7):
        waves += np.float32(roughness * 2 / order * rng.normal()) * np.sin(order * frame.angle + rng.uniform(0, 6.28))
    return np.asarray(np.clip(waves, 0.6, 1.4), dtype=np.float32)


def _scaled(reflectance: Field, factor: Field) -> Field:
    """``reflectance`` (H, W, 3) times a factor per pixel, (H, W), or per pixel and channel, (H, W, 3)."""
    per_channel = factor if factor.ndim == reflectance.ndim else factor[..., None]
    return np.asarray(reflectance * per_channel, dtype=np.float32)
