"""A bank extended by more good images: the same as one made of both, and thresholds that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import (
    DensityConfiguration,
    GaussianDensityConfiguration,
    KernelDensity,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
)
from models.detector import Detector
from models.extension import MOST_IMAGES, NotExtendable, extend, extension_steps
from models.geometry import Box
from models.prediction import Verdict
from models.scan import Ensemble
from tests.models.detectors import FINGERPRINT, SMALL, learn_once, make, part, saved

ODD = part(99, 90, 120, Box(x=40, y=30, width=24, height=24))
OTHER = part(98, 90, 120)
KERNELS = [KernelDensityConfiguration(), KernelDensityConfiguration(mode="neighbours", neighbours=4)]


def extended(detector: Detector, *images: NDArray[np.uint8], **source: Any) -> Detector:
    return extend(detector, np.stack([detector.place(image)[0] for image in images]), source)


def of(density: DensityConfiguration) -> DetectorConfiguration:
    return SMALL.model_copy(update={"density": density})


@pytest.mark.parametrize("density", KERNELS, ids=lambda density: density.mode)
def test_a_kernel_density_is_that_of_both_banks_at_the_width_that_it_had(density: KernelDensityConfiguration) -> None:
    before = make(of(density))
    old = before.scan.members[0].density
    assert isinstance(old, KernelDensity)
    after = extended(before, ODD).scan.members[0].density
    pixels, _ = before.place(ODD)
    windows = before.scan.members[0].embed(pixels[None]).flatten(0, 2).numpy()
    both = np.concatenate([old.bank.vectors.numpy(), windows])
    wanted = KernelDensity(density.model_copy(update={"gamma": old.gamma})).fit(both)
    np.testing.assert_allclose(after.score_samples(windows), wanted.score_samples(windows), rtol=0, atol=1e-6)
    assert (after.samples, after.facts()["gamma"]) == (len(both), old.gamma)


def test_what_nearest_neighbours_took_for_a_defect_is_good_once_it_was_added() -> None:
    before = make(of(NearestNeighboursConfiguration()))
    assert before.predict([ODD])[0].verdict is Verdict.DEFECTIVE
    after = extended(before, ODD)
    prediction = after.predict([ODD])[0]
    assert prediction.verdict is Verdict.GOOD
    assert prediction.image_score == pytest.approx(0, abs=1e-5)
    assert before.predict([ODD])[0].verdict is Verdict.DEFECTIVE  # the old one is as it was


def test_thresholds_are_those_of_the_calibration_images_under_the_new_bank() -> None:
    before = make()
    after = extended(before, ODD, OTHER)
    wanted = calibrate(after.scan, before.geometry, before.calibration_set.inputs, before.calibration_set.contents)
    np.testing.assert_allclose(after.calibration.image_scores, wanted.scores.image_scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(after.calibration.map_maxima, wanted.scores.map_maxima, rtol=0, atol=1e-6)
    rate = before.operating_point.false_reject_rate
    assert after.operating_point == after.calibration.operating_point(rate)
    assert not np.allclose(after.calibration.image_scores, before.calibration.image_scores, rtol=0, atol=1e-6)


def test_what_is_in_force_goes_on() -> None:
    before = make()
    point = before.calibration.operating_point(0.4).model_copy(update={"invalidity_threshold": 1.5})
    after = extend(before, before.place(ODD)[0][None], {}, point)
    assert (after.operating_point.false_reject_rate, after.operating_point.invalidity_threshold) == (0.4, 1.5)
    assert after.operating_point.image_threshold == after.calibration.operating_point(0.4).image_threshold


def test_every_member_of_an_ensemble_is_extended() -> None:
    scan, calibration_set = learn_once(SMALL)
    both = Detector("plate", Ensemble([scan, scan]), calibration_set, data_fingerprint=FINGERPRINT)
    larger = extended(both, ODD)
    sizes = [member.density.samples for member in larger.scan.members]
    windows = both.geometry.grid_size**2
    assert sizes == [member.density.samples + windows for member in both.scan.members]


def test_it_is_kept_and_says_where_it_comes_from(tmp_path: Path) -> None:
    first = extended(make(), ODD, inspections=["a"])
    second = extended(first, ODD, OTHER, inspections=["b", "c"])
    assert len({FINGERPRINT, first.data_fingerprint, second.data_fingerprint}) == 3
    loaded = Detector.load(saved(second, tmp_path / "artifact"), "cpu")
    assert loaded.training["extensions"] == [
        {"inspections": ["a"], "of_version": None, "images": 1},
        {"inspections": ["b", "c"], "of_version": None, "images": 2},
    ]
    assert loaded.training["note"] == "untrained"
    assert loaded.predict([ODD])[0].image_score == second.predict([ODD])[0].image_score


def test_a_step_looks_at_one_image() -> None:
    before = make()
    inputs = np.stack([before.place(ODD)[0]] * 2)
    assert len(list(extension_steps(before, inputs, {}))) == 2 + len(before.calibration_set)


@pytest.mark.parametrize("count", [0, MOST_IMAGES + 1])
def test_how_many_images(count: int) -> None:
    with pytest.raises(NotExtendable, match=f"1 to {MOST_IMAGES} images at once, not by {count}"):
        extend(make(), np.zeros((count, 97, 97, 3), np.uint8), {})


def test_a_density_without_a_bank_is_refused() -> None:
    with pytest.raises(NotExtendable, match=r"gaussian_density keeps no embeddings.*train again"):
        extended(make(of(GaussianDensityConfiguration())), ODD)


def test_embeddings_that_do_not_fit() -> None:
    density = make().scan.members[0].density
    assert isinstance(density, KernelDensity)
    with pytest.raises(ValueError, match="expected embeddings"):
        density.extended(np.zeros((2, density.dimension + 1), np.float32))
    with pytest.raises(ValueError, match="finite"):
        density.extended(np.full((2, density.dimension), np.nan, np.float32))
