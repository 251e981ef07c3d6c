from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.images import Placement
from models.prediction import Prediction, Verdict
from service.rendering import SCALE_END, SCALE_START, colour_scale, render_overlay, render_raw

SIDE = 64


def predict(anomaly_map: NDArray[np.float32], width: int = SIDE, height: int = SIDE) -> Prediction:
    placement = Placement(original_width=width, original_height=height, size=SIDE, mode="squash")
    return Prediction(
        score_map=anomaly_map,
        image_score=float(anomaly_map.max()),
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
    image = grey()
    render_overlay(image, predict(flat(2.0)), 1.0)
    assert (image == 100).all()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4))
def test_raw_map_is_exact_to_half_a_step(values: list[float]) -> None:
    anomaly_map = np.array(values, np.float32).reshape(2, 2)
    raw = render_raw(anomaly_map)
    codes = cv2.imdecode(np.frombuffer(raw.png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert codes is not None
    assert codes.dtype == np.uint16
    restored = raw.minimum + codes * raw.step
    assert np.abs(restored - anomaly_map).max() <= raw.step * (0.5 + 1e-6)
