"""The denoising auto-encoder against a slow version of itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.support import GEOMETRY, SIDE, make_encoder, random_crops, window_boxes
from training.pretext import Denoising, DenoisingConfiguration


def make(noise: float = 0.1) -> Denoising:
    torch.manual_seed(1)
    return Denoising(DenoisingConfiguration(noise=noise, head_width=8), 8 * 2, GEOMETRY).eval()


@pytest.mark.parametrize("crop_patches", [1, 2])
def test_each_window_is_reconstructed_from_its_own_corrupted_self(crop_patches: int) -> None:
    """Each window is cut out of the crop and of the corrupted crop first; squares are summed one by one."""
    size = crop_patches * SIDE
    task, encoder, crops = make(), make_encoder(), random_crops(2, size)
    means, deviation = (0.2, 0.5, 0.7), 0.25
    task.mean.copy_(torch.tensor(means)[:, None, None])
    task.deviation.fill_(deviation)
    torch.manual_seed(3)
    corrupted = task.corrupt(crops)
    squares, pixels = [], []
    with torch.no_grad():
        for crop, noisy in zip(crops, corrupted, strict=True):
            for top, left in window_boxes(size):
                clean = crop[:, top : top + SIDE, left : left + SIDE]
                window = noisy[None, :, top : top + SIDE, left : left + SIDE]
                decoded = task.decoder(encoder.features(window)[:, :, 0, 0])[0].tolist()
                wanted = [
                    (value - mean) / deviation
                    for channel, mean in zip(clean, means, strict=True)
                    for value in channel.flatten().tolist()
                ]
                squares += [(one - other) ** 2 for one, other in zip(decoded, wanted, strict=True)]
                pixels += wanted
        torch.manual_seed(3)
        result = task(encoder, crops)
    loss = sum(squares) / len(squares)
    mean = sum(pixels) / len(pixels)
    variance = sum((value - mean) ** 2 for value in pixels) / len(pixels)
    assert float(result.loss) == pytest.approx(loss, rel=1e-4)
    assert float(result.accuracy) == pytest.approx(max(0, 1 - loss / variance), abs=1e-4)


def test_the_noise_has_its_standard_deviation_and_stays_in_range() -> None:
    torch.manual_seed(0)
    grey = torch.full((4, 3, 64, 64), 0.5)
    noise = make(noise=0.05).corrupt(grey) - grey
    assert float(noise.std()) == pytest.approx(0.05, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=2e-3)
    loud = make(noise=1.0).corrupt(grey)
    assert (float(loud.min()), float(loud.max())) == (0, 1)


def test_perfect_and_hopeless_reconstructions() -> None:
    """1 where every pixel is right; 0, and not less, where a grey image would do better."""
    task, encoder = make(), make_encoder()
    crops = torch.cat([torch.zeros(1, 3, SIDE, SIDE), torch.ones(1, 3, SIDE, SIDE)])
    for decoded, loss, accuracy in ((crops, 0, 1), (1 - crops, 1, 0), (torch.full_like(crops, 0.5), 0.25, 0)):
        task.decoder = Constant(decoded.flatten(1))  # type: ignore[assignment]
        result = task(encoder, crops)
        assert float(result.loss) == pytest.approx(loss)
        assert float(result.accuracy) == pytest.approx(accuracy)


class Constant(nn.Module):
    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, features: Tensor) -> Tensor:
        return self.answer


def test_pixels_are_standardised_by_the_crops_before_training() -> None:
    task, batches = make(), iter(torch.rand(100, 4, 3, SIDE, SIDE) * torch.tensor([1, 0.5, 0.1])[:, None, None])
    seen: list[Tensor] = []

    def sample() -> Tensor:
        seen.append(next(batches))
        return seen[-1]

    task.prepare(make_encoder(), sample)
    crops = torch.cat(seen).numpy().astype(np.float64)
    mean = crops.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(task.mean[:, 0, 0], mean, rtol=1e-4)
    np.testing.assert_allclose(task.deviation, (crops - mean[:, None, None]).std(), rtol=1e-4)
    assert {"mean", "deviation"} <= task.state_dict().keys()  # a run that is resumed keeps them
    black = make()
    black.prepare(make_encoder(), lambda: torch.zeros(2, 3, SIDE, SIDE))
    result = black(make_encoder(), torch.zeros(2, 3, SIDE, SIDE))
    assert result.loss.isfinite()
    assert 0 <= result.accuracy <= 1
