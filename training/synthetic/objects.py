"""Products that lie on a conveyor: a machined flange, a circuit board and a closure."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from training.synthetic.canvas import SIDE, Field, Frame, Layer, Scene, blend, blurred, box, cover, noise, tinted

SHIFT = 2.5  # how far a part may lie from the centre
LAMP, LAMP_SWAY = -2.2, 0.3  # direction of the station's lamp, radians; it is never adjusted twice alike


def washer(rng: np.random.Generator, size: int) -> Scene:
    """A turned metal flange with six socket screws."""
    outer, bore, groove, screw_circle = 38.0, 13.0, 18.0, 28.0
    frame = Frame.of_image(size)
    part = _placed(rng, frame, degrees=10)
    body = frame.coverage(np.maximum(part.radius - outer, bore - part.radius))

    lamp = LAMP + rng.uniform(-LAMP_SWAY, LAMP_SWAY)
    marks = np.interp(part.radius, np.arange(0, SIDE, 0.45), rng.standard_normal(int(SIDE / 0.45) + 1))
    sheen = np.abs(np.cos(part.angle - lamp)) ** 3 - 0.4
    shade = 0.52 * (1 + rng.uniform(0.02, 0.04) * marks + rng.uniform(0.1, 0.25) * sheen)
    shade = shade * (1 + 0.25 * np.cos(part.angle - lamp) * frame.coverage(outer - 1.3 - part.radius))
    shade = shade * (1 - 0.25 * np.cos(part.angle - lamp) * frame.coverage(part.radius - bore - 1.2))
    shade = shade * (1 - 0.4 * frame.coverage(np.abs(part.radius - groove) - np.float32(0.45)))
    metal = _coloured(shade, rng, (0.98, 1.0, 1.02))
    base = blend(_on_belt(rng, frame, body), metal, body)

    screws = []
    free = body.copy()
    for number in range(6):
        turn = np.radians(60 * number)
        place, window = part.around(screw_circle * np.cos(turn), screw_circle * np.sin(turn), reach=6.5)
        cover(base, metal[window] * np.float32(0.7), frame.coverage(place.radius - np.float32(5.1)), window)
        cover(base, metal[window] * np.float32(0.15), frame.coverage(place.radius - np.float32(3.6)), window)
        head = _screw_head(rng, place.moved(0, 0, rng.uniform(0, 60)), lamp)
        screws.append(Layer(head, frame.coverage(place.radius - np.float32(4.4)), window))
        free[window] *= 1 - frame.coverage(place.radius - np.float32(6.0))
    return Scene(base, free, tuple(screws))


def cap(rng: np.random.Generator, size: int) -> Scene:
    """A blue moulded closure with a knurled rim and eight white inserts."""
    outer, rim, step, insert_circle = 40.0, 36.0, 14.0, 25.0
    frame = Frame.of_image(size)
    part = _placed(rng, frame, degrees=180)
    body = frame.coverage(part.radius - np.float32(outer))

    lamp = LAMP + rng.uniform(-LAMP_SWAY, LAMP_SWAY)
    lit = np.cos(part.angle - lamp)
    grain = noise(rng, size, 1.2)
    knurl = np.cos(60 * part.angle) * frame.coverage(rim - part.radius)
    shade = 1 + 0.2 * knurl + rng.uniform(0.01, 0.05) * grain + 0.04 * noise(rng, size, 20.0)
    for radius, height in ((rim, 0.3), (step, -0.25)):  # the flank of a step is bright where it faces the lamp
        shade = shade * (1 + height * lit * frame.coverage(np.abs(part.radius - radius) - np.float32(0.7)))
    plastic = _coloured(shade, rng, (0.22, 0.36, 0.56))
    base = blend(_on_belt(rng, frame, body), plastic, body)

    inserts = []
    free = frame.coverage(part.radius - np.float32(rim - 1))
    for number in range(8):
        turn = np.radians(45 * number)
        place, window = part.around(insert_circle * np.cos(turn), insert_circle * np.sin(turn), reach=8)
        place = place.moved(0, 0, 45 * number)
        pocket = box(place, 3.4, 5.4, corner=1.5)
        cover(base, plastic[window] * np.float32(0.6), frame.coverage(pocket), window)
        shape = box(place, 2.9, 4.9, corner=1.2)
        face = 0.62 * (1 + 0.02 * grain[window] + 0.12 * np.cos(place.angle - lamp) * (shape > -0.8))
        inserts.append(Layer(_coloured(face, rng, (1.0, 0.99, 0.94)), frame.coverage(shape), window))
        free[window] *= 1 - frame.coverage(box(place, 4.4, 6.4, corner=1.5))
    return Scene(base, free, tuple(inserts))


def board(rng: np.random.Generator, size: int) -> Scene:
    """A green circuit board with two chips, traces, vias and twelve small components."""
    frame = Frame.of_image(size)
    x, y = rng.uniform(-SHIFT, SHIFT, size=2)
    degrees = rng.uniform(-4, 4)
    part = frame.moved(x, y, degrees)
    outline = frame.coverage(box(part, BOARD_HALF, BOARD_HALF, corner=2.0))
    copper, metal, ink, chips, holes = (_laid(drawing, x, y, degrees) for drawing in _board_drawings(size))

    grain = noise(rng, size, 0.7)
    weave = rng.uniform(0.01, 0.05) * grain + 0.04 * noise(rng, size, 15.0)
    mask = _coloured(1 + weave, rng, (0.13, 0.34, 0.22))
    base = blend(_on_belt(rng, frame, outline), mask, outline)
    base = blend(base, mask * np.float32(rng.uniform(1.25, 1.5)), copper)
    solder = 0.6 * (1 + rng.uniform(0.03, 0.08) * noise(rng, size, 1.0))
    base = blend(base, _coloured(solder, rng, (1.0, 0.98, 0.92)), metal)
    base = blend(base, np.full_like(base, rng.uniform(0.62, 0.78)), ink)
    package = 0.17 * (1 + rng.uniform(0.03, 0.1) * noise(rng, size, 0.6))
    base = blend(base, _coloured(package, rng, (1.0, 1.0, 1.05)), chips)
    base = blend(base, np.full_like(base, 0.08), holes)

    components = []
    free = outline * (1 - holes)
    for number, (at_x, at_y, upright) in enumerate(COMPONENTS):
        placing = rng.normal(0, 0.15, size=2)
        place, window = part.around(at_x + placing[0], at_y + placing[1], reach=5)
        place = place.moved(0, 0, (90 if upright else 0) + rng.normal(0, 1.5))
        body = frame.coverage(box(place, 1.9, 1.6, corner=0.2))
        colour = (0.2, 0.19, 0.2) if number % 2 else (0.55, 0.43, 0.3)
        ends = tinted(np.full_like(body, 0.66), (1.0, 1.0, 0.97))
        face = blend(ends, _coloured(1 + 0.04 * grain[window], rng, colour), body)
        components.append(Layer(face, frame.coverage(box(place, 3.1, 1.6, corner=0.4)), window))
        free[window] *= 1 - frame.coverage(box(place, 4.2, 2.6))
    return Scene(base, free, tuple(components))


BOARD_HALF = 42.0
HEADER = (-8.0, 35.0, 8)  # x, y, columns of pins
CHIPS = ((-14.0, -12.0, 11.0, 11.0), (23.0, 14.0, 5.5, 10.0))  # x, y, half width, half height
COMPONENTS = (  # x, y, upright
    *((12.0 + 8.5 * column, -33.0 + 8.0 * row, False) for row in range(2) for column in range(3)),
    (-33.0, -30.0, True),
    (-33.0, -18.0, True),
    (-33.0, 2.0, True),
    (-24.0, 14.0, False),
    (-12.0, 14.0, False),
    (0.0, 14.0, False),
)


@lru_cache(maxsize=4)
def _board_drawings(size: int) -> tuple[Field, ...]:
    """Opacity (H, W) of copper, bare metal, ink, chips and holes of the board in its upright position.

    Drawn by line and box at several times the size: hundreds of shapes, too many to compute per image as distances.
    """
    oversampling = max(4, -(-1024 // size))
    drawings = [_Drawing(size * oversampling) for _ in range(5)]
    copper, metal, ink, chips, holes = drawings
    layout = np.random.default_rng(7)  # one layout for ever: the same product in every data set

    pads: list[tuple[float, float]] = []
    for x, y, half_width, half_height in CHIPS:
        chips.box(x, y, half_width, half_height)
        ink.disc(x - half_width + 2, y - half_height + 2, 0.8)
        for step in np.arange(-half_height + 2, half_height - 1, 2.2):
            for side in (-1, 1):
                metal.box(x + side * (half_width + 1.3), y + step, 1.3, 0.6)
                pads.append((x + side * (half_width + 2.6), y + step))
        if half_width == half_height:
            for step in np.arange(-half_width + 2, half_width - 1, 2.2):
                for side in (-1, 1):
                    metal.box(x + step, y + side * (half_height + 1.3), 0.6, 1.3)
    for x, y, upright in COMPONENTS:
        for side in (-1, 1):
            if upright:
                metal.box(x, y + side * 2.5, 1.7, 1.2)
            else:
                metal.box(x + side * 2.5, y, 1.2, 1.7)
    header_x, header_y, columns = HEADER
    ink.outline(header_x, header_y, columns * 1.9 + 1.2, 4.6)
    for column in range(columns):
        for row in (-1, 1):
            x, y = header_x + (column - (columns - 1) / 2) * 3.8, header_y + row * 2.0
            metal.disc(x, y, 1.3)
            holes.disc(x, y, 0.65)
            pads.append((x, y - 1.3))
    for x in (-37.5, 37.5):
        for y in (-37.5, 37.5):
            metal.disc(x, y, 3.2)
            holes.disc(x, y, 2.0)
    for x, y in pads:
        _trace(layout, copper, metal, holes, x, y)
    for text_x, text_y, letters in ((20.0, 32.0, 7), (-31.0, 25.0, 4), (12.0, -18.5, 6)):
        for letter in range(letters):
            ink.box(text_x + letter * 2.1, text_y, 0.25, 1.1)
            ink.box(text_x + letter * 2.1 + 0.6, text_y + layout.choice([-0.9, 0.0, 0.9]), 0.6, 0.25)
    return tuple(drawing.reduced(size) for drawing in drawings)


class _Drawing:
    """One opacity map of ``side`` pixels, drawn on in percent of its side."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.pixels: NDArray[np.uint8] = np.zeros((side, side), dtype=np.uint8)

    def box(self, x: float, y: float, half_width: float, half_height: float, thickness: int = cv2.FILLED) -> None:
        first, last = self._at(x - half_width, y - half_height), self._at(x + half_width, y + half_height)
        cv2.rectangle(self.pixels, first, last, 255, thickness)

    def outline(self, x: float, y: float, half_width: float, half_height: float) -> None:
        self.box(x, y, half_width, half_height, thickness=self._length(0.5))

    def disc(self, x: float, y: float, radius: float) -> None:
        cv2.circle(self.pixels, self._at(x, y), self._length(radius), 255, cv2.FILLED)

    def line(self, points: list[tuple[float, float]], width: float) -> None:
        corners = np.array([self._at(x, y) for x, y in points], dtype=np.int32)
        cv2.polylines(self.pixels, [corners], False, 255, self._length(width))

    def reduced(self, size: int) -> Field:
        small = cv2.resize(self.pixels, (size, size), interpolation=cv2.INTER_AREA)
        return np.asarray(small.astype(np.float32) / 255, dtype=np.float32)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        return round((x / SIDE + 0.5) * self.side), round((y / SIDE + 0.5) * self.side)

    def _length(self, length: float) -> int:
        return max(1, round(length / SIDE * self.side))


def _trace(layout: np.random.Generator, copper: _Drawing, metal: _Drawing, holes: _Drawing, x: float, y: float) -> None:
    """A trace from a pad: straight, diagonal, straight, to a via."""
    points = [(x, y)]
    heading = layout.choice([-1.0, 1.0])
    for dx, dy in ((layout.uniform(1, 5), 0.0), (layout.uniform(2, 8),) * 2, (0.0, layout.uniform(1, 8))):
        x, y = x + heading * dx, y + layout.choice([-1.0, 1.0]) * dy
        points.append((float(np.clip(x, -39, 39)), float(np.clip(y, -39, 39))))
    copper.line(points, 0.7)
    metal.disc(*points[-1], 0.9)
    holes.disc(*points[-1], 0.4)


def _placed(rng: np.random.Generator, frame: Frame, degrees: float) -> Frame:
    return frame.moved(rng.uniform(-SHIFT, SHIFT), rng.uniform(-SHIFT, SHIFT), rng.uniform(-degrees, degrees))


def _laid(drawing: Field, x: float, y: float, degrees: float) -> Field:
    """A drawing (H, W) moved and turned as ``Frame.moved`` does."""
    size = drawing.shape[0]
    middle = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), -degrees, 1.0)
    matrix[:, 2] += np.array([x, y]) / SIDE * size
    return np.asarray(cv2.warpAffine(drawing, matrix, (size, size), flags=cv2.INTER_LINEAR), dtype=np.float32)


def _screw_head(rng: np.random.Generator, place: Frame, lamp: float) -> Field:
    steel = rng.uniform(0.5, 0.58)
    dome = 1 + 0.25 * np.cos(place.angle - lamp) * place.radius / 4.2
    across = [np.abs(place.x * np.cos(turn) + place.y * np.sin(turn)) for turn in np.radians([0, 60, 120])]
    socket = place.coverage(np.maximum.reduce(across) - np.float32(1.5))
    return _coloured(steel * dome * (1 - 0.55 * socket), rng, (1.0, 1.0, 0.98))


def _on_belt(rng: np.random.Generator, frame: Frame, outline: Field) -> Field:
    """A conveyor (H, W, 3) of varying grey, with the shadow of what lies on it."""
    size = outline.shape[0]
    ribs = rng.uniform(0, 0.04) * np.sin(2 * np.pi * (frame.x / 5.0 + rng.uniform()))
    texture = rng.uniform(0.015, 0.035) * noise(rng, size, 0.8) + 0.04 * noise(rng, size, 18.0)
    shade = rng.uniform(0.22, 0.58) * (1 + ribs + texture)
    shift = np.array([[1, 0, rng.uniform(-1.5, 1.5)], [0, 1, rng.uniform(0.3, 1.5)]]) * [1, 1, size / SIDE]
    cast = blurred(np.asarray(cv2.warpAffine(outline, shift, (size, size)), dtype=np.float32), 1.3)
    return _coloured(shade * (1 - rng.uniform(0.25, 0.55) * cast), rng, (0.98, 1.0, 1.02))


def _coloured(shade: NDArray[np.floating], rng: np.random.Generator, colour: tuple[float, float, float]) -> Field:
    """A shade (H, W) in a material's colour, which differs a little between batches of the material."""
    batch = 1 + rng.normal(0, 0.012, size=3)
    red, green, blue = (float(value) for value in np.array(colour) * batch)
    return tinted(np.asarray(shade, dtype=np.float32), (red, green, blue))
