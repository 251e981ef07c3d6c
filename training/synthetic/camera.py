"""How a scene becomes an image: focus, light, exposure and sensor.

All of it varies between good images, and strongly: a detector that follows brightness, colour, contrast or noise finds
more to report in good images than in defective ones. Only the focus looks at a pixel's neighbours, so that a change of
the scene stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.synthetic.canvas import SIDE, Field, Frame, blurred, noise

# How much good images differ. Wider ranges make the products harder for a detector that looks at raw values.
EXPOSURE = (0.7, 1.3)  # factor on everything
LIGHT_FALLOFF = (0.0, 0.3)  # darkest side against the brightest, as a fraction
LIGHT_SPOT = (-0.1, 0.2)  # strength of a broad brighter or darker area
COLOUR_TEMPERATURE = 0.09  # largest gain of red against blue
TINT = 0.03  # largest gain of green
CONTRAST = (0.8, 1.1)
HAZE = (0.0, 0.08)  # stray light that lifts black
FOCUS = (0.17, 0.24)  # deviation of the blur, in percent of the image's side
READ_NOISE = (0.8, 1.6)  # deviation in grey levels
SHOT_NOISE = (0.5, 1.2)  # deviation in grey levels at white

GREY_LEVELS = 255
MIDDLE = 0.4  # what a change of contrast leaves as it is
SHOULDER = 0.8  # values above are compressed instead of clipped, so that highlights keep their texture


@dataclass(frozen=True)
class Camera:
    """One exposure; everything random is drawn already, so that two scenes can be taken under the same conditions.

    Args:
        light: (H, W, 3) light on the scene.
        contrast: slope around the middle grey.
        haze: stray light that lifts black.
        focus: deviation of the blur, in percent of the image's side.
        grain: (H, W, 3) noise with deviation 1.
        read_noise: deviation of the noise at black, in grey levels.
        shot_noise: deviation of what comes on top at white, in grey levels.
    """

    light: Field
    contrast: float
    haze: float
    focus: float
    grain: Field
    read_noise: float
    shot_noise: float

    @staticmethod
    def random(rng: np.random.Generator, size: int) -> Camera:
        """A camera and its light, drawn from the ranges above."""
        warmth = rng.uniform(-COLOUR_TEMPERATURE, COLOUR_TEMPERATURE)
        balance = np.array([1 + warmth, 1 + rng.uniform(-TINT, TINT), 1 - warmth], dtype=np.float32)
        brightness = rng.uniform(*EXPOSURE) * _random_light(rng, size)
        return Camera(
            light=np.asarray(brightness[..., None] * balance, dtype=np.float32),
            contrast=rng.uniform(*CONTRAST),
            haze=rng.uniform(*HAZE),
            focus=rng.uniform(*FOCUS),
            grain=rng.standard_normal((size, size, 3), dtype=np.float32),
            read_noise=_log_uniform(rng, *READ_NOISE),
            shot_noise=_log_uniform(rng, *SHOT_NOISE),
        )

    def focused(self, image: Field) -> Field:
        """``image`` (H, W) or (H, W, 3) as the lens draws it."""
        return blurred(image, self.focus)

    def exposed(self, focused: Field) -> Field:
        """Values in [0, 1] before noise of a focused reflectance (H, W, 3); pixel by pixel."""
        value = (focused * self.light - MIDDLE) * np.float32(self.contrast) + np.float32(MIDDLE)
        value = np.float32(self.haze) + value * np.float32(1 - self.haze)
        room = np.float32(1 - SHOULDER)
        compressed = SHOULDER + room * np.tanh((value - np.float32(SHOULDER)) / room)
        return np.asarray(np.clip(np.where(value > SHOULDER, compressed, value), 0, 1), dtype=np.float32)

    def developed(self, exposed: Field) -> NDArray[np.uint8]:
        """The image (H, W, 3) with this exposure's noise; pixel by pixel."""
        deviation = np.sqrt(self.read_noise**2 + self.shot_noise**2 * exposed)
        levels = np.rint(exposed * GREY_LEVELS + deviation * self.grain)
        return np.asarray(np.clip(levels, 0, GREY_LEVELS), dtype=np.uint8)


def _random_light(rng: np.random.Generator, size: int) -> Field:
    frame = Frame.of_image(size)
    direction = rng.uniform(0, 2 * np.pi)
    across = (np.cos(direction) * frame.x + np.sin(direction) * frame.y) / SIDE
    falloff = 1 - rng.uniform(*LIGHT_FALLOFF) * (across + 0.5)
    x, y = rng.uniform(-45, 45, size=2)
    spot = np.exp(-((frame.x - x) ** 2 + (frame.y - y) ** 2) / (2 * rng.uniform(15, 40) ** 2))
    uneven = 1 + 0.03 * noise(rng, size, 50.0)
    return np.asarray(falloff * (1 + rng.uniform(*LIGHT_SPOT) * spot) * uneven, dtype=np.float32)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
