"""Rotation prediction against a slow, obvious version of itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from tests.training.support import (
    GEOMETRY,
    SIDE,
    Recorder,
    make_encoder,
    random_crops,
    slow_accuracy,
    slow_mean_loss,
    window_boxes,
)
from training.pretext import Rotation, RotationConfiguration, RotNetConfiguration

TURNS = 4  # of a square


def make_rotation(crop_size: int, **settings: Any) -> Rotation:
    torch.manual_seed(1)
    configuration = RotationConfiguration(**({"head_depth": 1, "head_width": 8} | settings))
    return Rotation(configuration, 8 * 2, crop_size).eval()


def turned(image: Tensor, turns: int) -> Tensor:
    """(3, C, C), turned counter-clockwise by NumPy."""
    return torch.from_numpy(np.rot90(image.numpy(), turns, axes=(1, 2)).copy())


@pytest.mark.parametrize("crop_patches", [1, 2])
@pytest.mark.parametrize("name", ["rotation", "rotnet"])
def test_rotation_is_the_loss_over_every_turned_window(name: str, crop_patches: int) -> None:
    """Each window of a crop is cut out first, then turned and classified by itself."""
    size = crop_patches * SIDE
    task = make_rotation(size) if name == "rotation" else make_rotnet(size)
    encoder, crops = make_encoder(), random_crops(2, size)
    task.augment = nn.Identity()
    logits, labels = [], []
    with torch.no_grad():
        for crop in crops:
            for top, left in window_boxes(size):
                for turns in range(TURNS):
                    window = turned(crop[:, top : top + SIDE, left : left + SIDE], turns)
                    logits.append(task.head(encoder.features(window[None])[:, :, 0, 0]))
                    labels.append(turns)
        result = task(encoder, crops)
    assert float(result.loss) == pytest.approx(slow_mean_loss(logits, labels), abs=1e-5)
    assert float(result.loss) == pytest.approx(
        float(F.cross_entropy(torch.cat(logits), torch.tensor(labels))), abs=1e-5
    )
    assert float(result.accuracy) == pytest.approx(slow_accuracy(logits, labels), abs=1e-6)


def test_rotation_turns_views_of_every_crop_in_all_four_ways() -> None:
    size = 2 * SIDE
    task, encoder, crops = make_rotation(size), Recorder(make_encoder()), random_crops(3, size)
    torch.manual_seed(5)
    task(encoder, crops)
    torch.manual_seed(5)
    views = task.augment(crops)
    assert not torch.equal(views, crops)
    expected = [turned(view, turns) for turns in range(TURNS) for view in views]
    assert torch.equal(encoder.seen, torch.stack(expected))


@pytest.mark.parametrize("turns", range(TURNS))
def test_a_window_of_a_turned_crop_is_a_turned_window(turns: int) -> None:
    encoder, size = make_encoder(), 2 * SIDE
    [crop] = random_crops(1, size)
    side = GEOMETRY.windows(size)
    # Where each window of the crop comes to lie in the turned one.
    places = np.rot90(np.arange(side * side).reshape(side, side), turns)
    with torch.inference_mode():
        dense = encoder.features(turned(crop, turns)[None])[0]
        for row, (top, left) in enumerate(window_boxes(size)):
            window = turned(crop[:, top : top + SIDE, left : left + SIDE], turns)
            i, j = (int(index) for index in np.argwhere(places == row)[0])
            torch.testing.assert_close(dense[:, i, j], encoder.features(window[None])[0, :, 0, 0], atol=1e-5, rtol=1e-4)


def make_rotnet(crop_size: int) -> Rotation:
    torch.manual_seed(1)
    return Rotation(RotNetConfiguration(), 8 * 2, crop_size).eval()


def test_rotnet_is_a_linear_layer() -> None:
    [layer] = make_rotnet(SIDE).head
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (8 * 2, TURNS)


def test_a_rotation_head_of_no_layer_is_refused_in_favour_of_rotnet() -> None:
    with pytest.raises(ValidationError, match="is RotNet: use the pretext task rotnet"):
        RotationConfiguration(head_depth=0)


def test_the_papers_head_is_eight_times_512() -> None:
    head = list(make_rotation(SIDE, head_depth=8, head_width=512).head)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 8 + [nn.Linear]
    assert [type(layer) for layer in head] == kinds
    shapes = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
    assert shapes == [(8 * 2, 512)] + [(512, 512)] * 7 + [(512, TURNS)]
    assert [layer.num_features for layer in head if isinstance(layer, nn.BatchNorm1d)] == [512] * 8
    assert RotationConfiguration(head_depth=8, head_width=512) == RotationConfiguration()
