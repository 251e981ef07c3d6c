"""An ensemble scores by the mean of its members, and is an artifact like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.artifact import ArtifactError, read_manifest
from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import KernelDensity, KernelDensityConfiguration
from models.detector import Detector
from models.encoders import DensePatchConfiguration, create_encoder
from models.geometry import Box, ScanGeometry
from models.heatmap import GaussianUpsampler
from models.scan import Ensemble, Scan, combine
from models.validity import LAYOUT_DIMENSION, mean_embedding

CONFIGURATION = DetectorConfiguration(geometry=ScanGeometry(image_size=64), encoder=DensePatchConfiguration(width=3))
MEMBERS = 3


def parts(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def member(seed: int) -> Scan:
    """An untrained encoder of its own and the density of its embeddings."""
    torch.manual_seed(seed)
    encoder = create_encoder(CONFIGURATION.encoder, CONFIGURATION.geometry)
    scan = Scan(CONFIGURATION, encoder, KernelDensity(), torch.device("cpu"))
    scan.density.fit(scan.embed(parts(3, seed)).flatten(0, 2).numpy())
    return scan


@pytest.fixture(scope="module")
def members() -> list[Scan]:
    return [member(seed) for seed in range(MEMBERS)]


@pytest.fixture
def detector(members: list[Scan]) -> Detector:
    scan = combine(members)
    whole = Box(x=0, y=0, width=64, height=64)
    calibration_set = calibrate(scan, CONFIGURATION.geometry, parts(6, 10), [whole] * 6)
    return Detector("plate", scan, calibration_set, data_fingerprint="0" * 64)


def saved(detector: Detector, folder: Path) -> Path:
    folder.mkdir()
    detector.save(folder)
    return folder


def test_the_score_map_is_the_mean_of_the_members(members: list[Scan]) -> None:
    images = parts(4, 20)
    score_maps, anomaly_maps = Ensemble(members).maps(images)
    of_members = np.stack([scan.maps(images)[0] for scan in members])
    np.testing.assert_allclose(score_maps, of_members.mean(axis=0), rtol=0, atol=1e-6)
    assert of_members.std(axis=0).min() > 0  # they differ
    heatmap = GaussianUpsampler(CONFIGURATION.geometry)(torch.from_numpy(score_maps))
    np.testing.assert_allclose(anomaly_maps, heatmap, rtol=0, atol=1e-6)
    summaries = [scan.look(images).summaries for scan in members]
    expected = [mean_embedding(summary) for summary in summaries] + [summaries[0][:, -LAYOUT_DIMENSION:]]
    np.testing.assert_allclose(Ensemble(members).look(images).summaries, np.hstack(expected), rtol=0, atol=1e-6)
    reversed_maps, _ = Ensemble(members[::-1]).maps(images)
    np.testing.assert_allclose(reversed_maps, score_maps, rtol=0, atol=1e-6)


def test_the_error_of_a_sampled_score_is_known_and_smaller_for_a_mean() -> None:
    settings = KernelDensityConfiguration(mode="sampled", samples=256, tolerance=1e6, gamma=1)
    scan, whole = member(0), Box(x=0, y=0, width=64, height=64)
    images = parts(16, 0)
    scan.density = KernelDensity(settings).fit(scan.embed(images).flatten(0, 2).numpy())
    one, four = (
        Detector(
            "plate",
            made,
            calibrate(made, CONFIGURATION.geometry, parts(6, 10), [whole] * 6),
            data_fingerprint="0" * 64,
        )
        for made in (scan, combine([scan] * 4))
    )
    [image] = parts(1, 20)
    [alone], [together] = one.predict([image]), four.predict([image])
    embeddings = scan.embed(image[None]).flatten(0, 2)
    scores, errors = scan.density.scores_with_error(embeddings)
    assert alone.image_score == pytest.approx(float(-scores.min()), abs=1e-6)
    assert alone.image_score_error == pytest.approx(float(errors[scores.argmin()]), rel=1e-4)
    assert alone.image_score_error > 1e-5
    assert together.image_score_error == pytest.approx(alone.image_score_error / 2, rel=1e-4)


def test_members_that_are_the_same_score_as_one(members: list[Scan]) -> None:
    images = parts(2, 21)
    score_maps, anomaly_maps = Ensemble(members[:1] * 4).maps(images)
    expected_scores, expected_anomaly = members[0].maps(images)
    np.testing.assert_allclose(score_maps, expected_scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(anomaly_maps, expected_anomaly, rtol=0, atol=1e-6)


def test_one_member_is_no_ensemble(members: list[Scan]) -> None:
    assert combine(members[:1]) is members[0]
    assert members[0].members == (members[0],)


def test_a_saved_ensemble_predicts_the_same_to_the_last_bit(detector: Detector, tmp_path: Path) -> None:
    loaded = Detector.load(saved(detector, tmp_path / "artifact"), "cpu")
    assert len(loaded.scan.members) == MEMBERS
    images = list(parts(3, 30))
    for one, other in zip(detector.predict(images), loaded.predict(images), strict=True):
        np.testing.assert_array_equal(one.score_map, other.score_map)
        np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
        assert (one.image_score, one.verdict, one.regions) == (other.image_score, other.verdict, other.regions)
    facts = [facts["gamma"] for facts in loaded.description()["members"]]
    assert facts == [facts["gamma"] for facts in detector.description()["members"]]
    assert len(set(facts)) == MEMBERS


def test_every_file_of_every_member_is_checked(detector: Detector, tmp_path: Path) -> None:
    folder = saved(detector, tmp_path / "artifact")
    of_one = {"encoder.safetensors", "density.safetensors", "bank.faiss"}
    expected = of_one | {f"member_{n}/{name}" for n in range(1, MEMBERS) for name in of_one}
    assert set(read_manifest(folder).files) == expected | {"calibration.safetensors"}
    for name in sorted(expected):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=name):
            Detector.load(folder, "cpu")
        path.unlink()
        with pytest.raises(ArtifactError, match=name):
            Detector.load(folder, "cpu")
        path.write_bytes(content)
    Detector.load(folder, "cpu")


@pytest.mark.cuda
def test_cuda_scores_as_the_cpu_does(detector: Detector, tmp_path: Path) -> None:
    on_cuda = Detector.load(saved(detector, tmp_path / "artifact"), "cuda")
    assert {member.device.type for member in on_cuda.scan.members} == {"cuda"}
    images = list(parts(3, 40))
    for one, other in zip(detector.predict(images), on_cuda.predict(images), strict=True):
        np.testing.assert_allclose(one.score_map, other.score_map, rtol=0, atol=1e-4)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=0, atol=1e-4)
