"""A detector of any density is served: its verdicts, and its heatmaps on the scale of its own threshold."""

from __future__ import annotations

import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from models.densities import (
    DensityConfiguration,
    GaussianDensityConfiguration,
    GaussianMixtureConfiguration,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
    OneClassSVMConfiguration,
)
from models.store import ModelStore
from tests.service.conftest import Serve
from tests.service.support import DEFECT, encode, make_detector, part

DENSITIES: dict[str, DensityConfiguration] = {
    "kde": KernelDensityConfiguration(),
    "neighbours": KernelDensityConfiguration(mode="neighbours"),
    "svm": OneClassSVMConfiguration(),
    "linear": OneClassSVMConfiguration(kernel="linear"),
    "gaussian": GaussianDensityConfiguration(),
    "mixture": GaussianMixtureConfiguration(components=3),
    "nearest": NearestNeighboursConfiguration(),
}


@pytest.fixture(scope="module")
def every(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server that has a category for every density."""
    root = tmp_path_factory.mktemp("store")
    for category, density in DENSITIES.items():
        ModelStore(root).publish(category, make_detector(category, density).save)
    with serve(root) as client:
        yield client


@pytest.mark.parametrize("category", DENSITIES)
def test_a_hole_is_found_and_drawn(every: httpx.Client, category: str) -> None:
    good, hole = part(100), part(100, defective=True)
    answers = [every.post(f"/v1/categories/{category}/score", files={"image": encode(image)}) for image in (good, hole)]
    assert [answer.status_code for answer in answers] == [200, 200]
    without, with_hole = (answer.json() for answer in answers)
    assert with_hole["image_score"] > without["image_score"]
    assert (with_hole["verdict"], with_hole["p_value"]) == ("defective", pytest.approx(1 / 9))
    box = with_hole["regions"][0]["box"]
    assert box["x"] < DEFECT.x + DEFECT.width
    assert box["x"] + box["width"] > DEFECT.x

    answer = every.post(f"/v1/categories/{category}/heatmap", files={"image": encode(hole)})
    assert answer.status_code == 200
    changed = (np.asarray(Image.open(io.BytesIO(answer.content))) != hole).any(axis=2)
    inside = np.s_[DEFECT.y : DEFECT.y + DEFECT.height, DEFECT.x : DEFECT.x + DEFECT.width]
    assert changed[inside].mean() > 0.9
    if category != "neighbours":  # whose 1 / N lifts every score alike, above the start of the scale
        assert changed.mean() < 0.7
