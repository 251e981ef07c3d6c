from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.explanation import Explanation
from models.geometry import Box
from models.images import Placement
from models.prediction import Prediction, Verdict
from service.rendering import (
    SCALE_END,
    SCALE_START,
    colour_scale,
    full_colour,
    render_explanation,
    render_overlay,
    render_raw,
)

SIDE = 64


def predict(anomaly_map: NDArray[np.float32], width: int = SIDE, height: int = SIDE) -> Prediction:
    placement = Placement(original_width=width, original_height=height, size=SIDE, mode="squash")
    return Prediction(
        score_map=anomaly_map,
        image_score=float(anomaly_map.max()),
        image_score_error=0.0,
        anomaly_map=anomaly_map,
        placement=placement,
        p_value=1.0,
        verdict=Verdict.GOOD,
        regions=(),
    )


def decode(png: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture.astype(np.uint8)


def flat(value: float) -> NDArray[np.float32]:
    return np.full((SIDE, SIDE), value, np.float32)


def grey(width: int = SIDE, height: int = SIDE) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 100, np.uint8)


@given(st.floats(-1e6, 1e6, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-6))
def test_scale_rises_and_holds_the_threshold(threshold: float) -> None:
    start, end = colour_scale(threshold)
    assert start < threshold < end


def test_scale_is_in_multiples_of_the_threshold() -> None:
    assert colour_scale(3.0) == (3.0 * SCALE_START, 3.0 * SCALE_END)


def test_same_value_has_the_same_colour_on_every_part() -> None:
    """The scale is the category's: what else an image holds does not move a colour."""
    plain, spotted = flat(1.5), flat(1.5)
    plain[:8, :8] = 0
    spotted[:8, :8], spotted[8:16, :8] = 0, 50
    one = decode(render_overlay(grey(), predict(plain), 1.0, opacity=1))
    other = decode(render_overlay(grey(), predict(spotted), 1.0, opacity=1))
    assert (one[32:, 32:] == other[32:, 32:]).all()


def test_values_above_the_scale_have_its_last_colour() -> None:
    at_end = render_overlay(grey(), predict(flat(2.0)), 1.0, opacity=1)
    assert render_overlay(grey(), predict(flat(1e9)), 1.0, opacity=1) == at_end


def test_nothing_is_drawn_below_the_scale() -> None:
    assert (decode(render_overlay(grey(), predict(flat(SCALE_START - 0.01)), 1.0, opacity=1)) == 100).all()
    assert (decode(render_overlay(grey(), predict(flat(SCALE_START + 0.01)), 1.0, opacity=1)) != 100).any()


@pytest.mark.parametrize("opacity", [0.0, 0.25, 0.5, 1.0])
def test_opacity_mixes(opacity: float) -> None:
    full = decode(render_overlay(grey(), predict(flat(1.2)), 1.0, opacity=1)).astype(float)
    mixed = decode(render_overlay(grey(), predict(flat(1.2)), 1.0, opacity=opacity))
    assert np.abs(mixed - (opacity * full + (1 - opacity) * 100)).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 300), (300, 7), (SIDE, SIDE)])
def test_overlay_has_the_originals_size(width: int, height: int) -> None:
    picture = decode(render_overlay(grey(width, height), predict(flat(1.2), width, height), 1.0))
    assert picture.shape == (height, width, 3)


def test_overlay_leaves_its_input_alone() -> None:
    image, anomaly_map = grey(), flat(2.0)
    render_overlay(image, predict(anomaly_map), 1.0)
    render_explanation(image, explanation_of(anomaly_map))
    assert (image == 100).all()
    assert (anomaly_map == 2).all()


@pytest.mark.parametrize(("draw", "most"), [("overlay", 10), ("explanation", 15)])
def test_drawing_takes_few_bytes_a_pixel(draw: str, most: int) -> None:
    """An image of 64 megapixels has 0.2 GB; several are drawn at a time."""
    side = 500
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (side, side, 3)).astype(np.uint8)  # nothing to compress
    anomaly_map = random.uniform(-1, 1, (SIDE, SIDE)).astype(np.float32)
    tracemalloc.start()
    if draw == "overlay":
        render_overlay(image, predict(anomaly_map, side, side), 0.5)
    else:
        render_explanation(image, explanation_of(anomaly_map, side, side))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < most * side * side


def explanation_of(attributions: NDArray[np.float32], width: int = SIDE, height: int = SIDE) -> Explanation:
    window = Box(x=16, y=16, width=32, height=32)
    return Explanation("integrated_gradients", predict(attributions, width, height), window, attributions, 0.0)


def test_red_raises_and_blue_lowers_the_score_and_nothing_is_as_it_was() -> None:
    attributions = flat(0)
    attributions[20:24, 20:24], attributions[30:34, 30:34], attributions[40:44, 40:44] = 2, -2, 1
    picture = decode(render_explanation(grey(), explanation_of(attributions), opacity=1))[:, :, ::-1].astype(int)
    assert (picture[20:24, 20:24] == (255, 0, 0)).all()
    assert (picture[30:34, 30:34] == (0, 0, 255)).all()
    assert np.abs(picture[40:44, 40:44] - (178, 50, 50)).max() <= 1  # half of the way
    assert (picture[16, 16:48] == 255).all()  # the window's outline
    assert (picture[:15] == 100).all()
    assert (picture[17:20, 17:47] == 100).all()


def test_a_single_pixel_does_not_make_the_others_pale() -> None:
    attributions = np.random.default_rng(0).uniform(-1, 1, (SIDE, SIDE)).astype(np.float32)
    attributions[20, 20] = 1000
    assert 0.9 < full_colour(explanation_of(attributions)) < 1
    assert full_colour(explanation_of(flat(0))) == 0


def test_an_explanation_of_nothing_is_the_image_and_the_window() -> None:
    picture = decode(render_explanation(grey(), explanation_of(flat(0)), opacity=1))
    assert (picture[17:47, 17:47] == 100).all()
    assert (decode(render_explanation(grey(), explanation_of(flat(1)), opacity=0)) == 100).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 300), (300, 7), (SIDE, SIDE)])
def test_an_explanation_has_the_originals_size(width: int, height: int) -> None:
    picture = decode(render_explanation(grey(width, height), explanation_of(flat(1.2), width, height)))
    assert picture.shape == (height, width, 3)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4))
def test_raw_map_is_exact_to_half_a_step(values: list[float]) -> None:
    anomaly_map = np.array(values, np.float32).reshape(2, 2)
    raw = render_raw(anomaly_map)
    codes = cv2.imdecode(np.frombuffer(raw.png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert codes is not None
    assert codes.dtype == np.uint16
    restored = raw.minimum + codes * raw.step
    assert np.abs(restored - anomaly_map).max() <= raw.step * (0.5 + 1e-6)
