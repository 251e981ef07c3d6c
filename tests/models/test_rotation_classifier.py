"""The rotation classifier's score against its definition, window by window."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from models.densities import RotationClassifier, RotationClassifierConfiguration
from models.encoders import DensePatch, Encoder, ResNet18Patch
from models.geometry import ScanGeometry
from models.heads import projection_head, window_vectors

Score = Literal["all_rotations", "upright"]
scores = pytest.mark.parametrize("score", ["all_rotations", "upright"])


def dense() -> DensePatch:
    torch.manual_seed(0)
    return DensePatch(ScanGeometry(), width=2).eval()


def per_patch() -> ResNet18Patch:
    """A stride that leaves pixels of the images below unscanned."""
    torch.manual_seed(0)
    return ResNet18Patch(ScanGeometry(image_size=64, patch_size=16, stride=10), stem="imagenet").eval()


def shaded(count: int, height: int, width: int, seed: int = 2) -> Tensor:
    """Noise whose contrast changes over the image, so that windows differ."""
    random = torch.Generator().manual_seed(seed)
    light = torch.linspace(0, 1, height)[:, None] * torch.linspace(0.2, 1, width)
    return light * torch.rand(count, 3, height, width, generator=random)


def make(encoder: Encoder, score: Score = "all_rotations", depth: int = 2) -> RotationClassifier:
    """A head of random weights, sure enough of itself to differ from window to window."""
    torch.manual_seed(1)
    head = projection_head(encoder.feature_dimension, depth, 8, 4)
    with torch.no_grad():
        features = window_vectors(encoder.features(shaded(4, 48, 48, seed=0)))
        spread, mean = features.std(dim=0).clamp(min=1e-6), features.mean(dim=0)
        first: Any = head[0]
        first.weight.copy_(torch.randn_like(first.weight) / spread / len(spread) ** 0.5)
        if depth:
            head[1].running_mean.copy_(first.weight @ mean)  # type: ignore[operator]
            head[-1].weight.mul_(5)  # type: ignore[operator]
        else:
            first.bias.copy_(-first.weight @ mean)
    return RotationClassifier(RotationClassifierConfiguration(score=score)).adopt(head)


def slow_score(density: RotationClassifier, encoder: Encoder, window: Tensor) -> float:
    """Of one window (3, P, P): turned by NumPy, classified by itself, the softmax written out."""
    total = 0.0
    for turns in range(4 if density.configuration.score == "all_rotations" else 1):
        turned = torch.from_numpy(np.rot90(window.numpy(), turns, axes=(1, 2)).copy())
        logits = density._head(encoder.features(turned[None])[:, :, 0, 0])[0].tolist()
        exponentials = [math.exp(logit - max(logits)) for logit in logits]
        total += math.log(exponentials[turns] / sum(exponentials))
    return total


@scores
@pytest.mark.parametrize(("make_encoder", "shape"), [(dense, (48, 42)), (per_patch, (45, 30))])
def test_a_map_is_the_score_of_every_window_turned_by_itself(
    make_encoder: Any, shape: tuple[int, int], score: Score
) -> None:
    encoder: Encoder = make_encoder()
    density, geometry = make(encoder, score), encoder.geometry
    images = shaded(2, *shape)
    rows, columns = map(geometry.windows, shape)
    assert (shape[1] - geometry.patch_size) % geometry.stride  # pixels are left over, and must not shift the windows
    with torch.inference_mode():
        score_map = density.score_map(encoder, images)
        assert score_map.shape == (2, rows, columns)
        for b in range(2):
            for i in range(rows):
                for j in range(columns):
                    top, left = geometry.stride * i, geometry.stride * j
                    window = images[b, :, top : top + geometry.patch_size, left : left + geometry.patch_size]
                    expected = slow_score(density, encoder, window)
                    # The head multiplies what float32 rounds; on some processors that comes to 1.04e-4.
                    assert float(score_map[b, i, j]) == pytest.approx(expected, rel=5e-4, abs=1e-4)
    assert score_map.std() > 0.01


@scores
@pytest.mark.parametrize("depth", [0, 2])
def test_what_is_saved_scores_the_same(tmp_path: Path, score: Score, depth: int) -> None:
    encoder = dense()
    density = make(encoder, score, depth)
    density.save(tmp_path)
    restored = RotationClassifier(density.configuration).restore(tmp_path)
    score_map = density.score_map(encoder, shaded(1, 64, 64))
    assert score_map.std() > 0.01
    assert torch.equal(restored.score_map(encoder, shaded(1, 64, 64)), score_map)
    assert (
        restored.facts()
        == density.facts()
        == {"samples": 0, "dimension": 16, "depth": depth, "width": 8 if depth else 4}
    )


def test_a_head_that_is_sure_scores_zero_where_it_is_right() -> None:
    """The brightest side of a window tells how it is turned; the features say which side that is."""

    class Sides(Encoder):
        dimension = feature_dimension = 4

        def features(self, images: Tensor) -> Tensor:
            mean = images.mean(dim=1)
            half = images.shape[2] // 2
            sides = (mean[:, :half], mean[:, :, :half], mean[:, half:], mean[:, :, half:])  # top, then turning left
            return torch.stack([side.mean(dim=(1, 2)) for side in sides], dim=1)[:, :, None, None]

    head = projection_head(4, 0, 0, 4)
    head.load_state_dict({"0.weight": 100 * torch.eye(4), "0.bias": torch.zeros(4)})
    upright = torch.zeros(1, 3, 32, 32)
    upright[:, :, :16] = 1
    encoder = Sides(ScanGeometry())
    for configuration, turned in (
        (RotationClassifierConfiguration(), 4),
        (RotationClassifierConfiguration(score="upright"), 1),
    ):
        density = RotationClassifier(configuration).adopt(head)
        assert float(density.score_map(encoder, upright)) == pytest.approx(0, abs=1e-6)
        # The logit of the rotation that is there is 100, of the two beside it 50, of the one across it 0.
        wrong = float(density.score_map(encoder, upright.rot90(1, dims=(2, 3))))
        assert wrong == pytest.approx(-50 * turned)


@scores
def test_an_encoder_that_gives_no_numbers_passes_no_window(score: Score) -> None:
    encoder = dense()
    density = make(encoder, score)
    next(encoder.parameters()).data.fill_(math.nan)
    with pytest.raises(ValueError, match="finite"):
        density.score_map(encoder, shaded(1, 48, 48))


def test_embeddings_are_refused() -> None:
    density = make(dense())
    with pytest.raises(TypeError, match="adopt"):
        RotationClassifier().fit(np.ones((3, 16), np.float32))
    with pytest.raises(TypeError, match="score_map"):
        density.score_samples(np.ones((3, 16), np.float32))
    with pytest.raises(RuntimeError, match="call adopt first"):
        RotationClassifier().score_map(dense(), torch.rand(1, 3, 32, 32))
