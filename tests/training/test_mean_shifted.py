"""The mean-shifted contrastive loss against a slow, obvious version of itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from models.encoders import DensePatch, DensePatchConfiguration
from models.geometry import ScanGeometry
from training.augmentation import colour_jitter
from training.pretext import MeanShifted, MeanShiftedConfiguration, PretextConfiguration, create_pretext
from training.pretext.mean_shifted import CENTRE_BATCHES, nt_xent
from training.trainer import Trainer, TrainingConfiguration

GEOMETRY = ScanGeometry(image_size=40)
SIDE = GEOMETRY.patch_size
both = pytest.mark.parametrize("angular", [False, True])


def make_encoder() -> DensePatch:
    torch.manual_seed(0)
    return DensePatch(GEOMETRY, width=2)


def make_task(**settings: Any) -> MeanShifted:
    task = create_pretext(MeanShiftedConfiguration(**settings), encoder=make_encoder(), crop_size=SIDE)
    assert isinstance(task, MeanShifted)
    return task


def random_crops(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_nt_xent(first: list[list[float]], second: list[list[float]], temperature: float) -> tuple[float, float]:
    """One view after the other, with its partner above and every other view of both kinds below the line."""
    views = [unit(vector) for vector in (*first, *second)]
    losses, hits = [], 0
    for i, view in enumerate(views):
        partner = (i + len(first)) % len(views)
        terms = {k: math.exp(dot(view, other) / temperature) for k, other in enumerate(views) if k != i}
        losses.append(-math.log(terms[partner] / sum(terms.values())))
        hits += max(terms, key=lambda k: terms[k]) == partner
    return sum(losses) / len(losses), hits / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.25, 1.0])
@pytest.mark.parametrize(("count", "dimension"), [(2, 3), (5, 4), (24, 64)])
def test_nt_xent_is_its_definition(count: int, dimension: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(count)
    first = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    second = first + torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    loss, accuracy = slow_nt_xent(first.tolist(), second.tolist(), temperature)
    result = nt_xent(first, second, temperature)
    assert float(result.loss) == pytest.approx(loss, rel=1e-12)
    assert float(result.accuracy) == pytest.approx(accuracy, abs=1e-6)
    swapped = nt_xent(second, first, temperature)  # both directions
    torch.testing.assert_close(swapped.loss, result.loss)


@both
def test_a_step_is_the_loss_of_embeddings_seen_from_the_centre(angular: bool) -> None:
    task, encoder, crops = make_task(angular=angular), make_encoder().eval(), random_crops(5)
    task.prepare(encoder, lambda: random_crops(6, seed=7))
    torch.manual_seed(3)
    with torch.no_grad():
        result = task(encoder, crops)
        torch.manual_seed(3)
        views = [task.augment(crops), task.augment(crops)]
        assert not torch.equal(*views)
        embeddings = [[encoder(x[None])[0, :, 0, 0].double() for x in view] for view in views]
    centre = task.centre.double()
    shifted = [[(vector - centre).tolist() for vector in vectors] for vectors in embeddings]
    loss, accuracy = slow_nt_xent(shifted[0], shifted[1], 0.25)
    if angular:  # the mean squared distance to the centre, of each kind of view
        loss += sum(sum(dot(row, row) for row in rows) / len(rows) for rows in shifted)
    assert float(result.loss) == pytest.approx(loss, rel=1e-4)
    assert float(result.accuracy) == pytest.approx(accuracy, abs=1e-6)


@both
def test_the_centre_is_the_mean_embedding_before_training(angular: bool) -> None:
    task, encoder = make_task(angular=angular), make_encoder()
    drawn: list[Tensor] = []

    def sample() -> Tensor:
        drawn.append(random_crops(4, seed=len(drawn)))
        return drawn[-1]

    task.prepare(encoder, sample)
    assert len(drawn) == CENTRE_BATCHES
    with torch.no_grad():  # each by itself: in evaluation mode, where batch norm does not mix them
        embeddings = torch.stack([encoder.eval()(crop[None])[0, :, 0, 0] for crops in drawn for crop in crops])
    mean = embeddings.double().mean(dim=0).float()
    assert mean.norm() < 0.999
    torch.testing.assert_close(task.centre, mean / mean.norm() if angular else mean, atol=1e-6, rtol=1e-5)


def test_the_loss_falls() -> None:
    task, encoder = make_task(), make_encoder()
    task.augment = colour_jitter(0.1)
    crops = torch.nn.functional.interpolate(torch.rand(16, 3, 4, 4), size=SIDE, mode="bilinear")
    task.prepare(encoder, lambda: crops)
    encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(25):
        loss = task(encoder, crops).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def make_trainer(folder: Path) -> Trainer:
    images = np.random.default_rng(0).integers(0, 256, (4, GEOMETRY.image_size, GEOMETRY.image_size, 3), np.uint8)
    settings = TrainingConfiguration(pretext=MeanShiftedConfiguration(), steps=2, batch_size=4, learning_rate=0.01)
    return Trainer(settings, DensePatchConfiguration(width=2), GEOMETRY, images, torch.device("cpu"), folder)


def test_a_resumed_run_keeps_the_centre_it_began_with(tmp_path: Path) -> None:
    first = make_trainer(tmp_path)
    first.run()
    assert isinstance(first.task, MeanShifted)
    assert first.task.centre.norm() > 0
    resumed = make_trainer(tmp_path)
    assert resumed.resume()
    assert isinstance(resumed.task, MeanShifted)
    assert torch.equal(resumed.task.centre, first.task.centre)


def test_the_authors_schedule_is_the_preset() -> None:
    settings = TrainingConfiguration(pretext=MeanShiftedConfiguration())
    assert (settings.learning_rate, settings.batch_size, settings.momentum, settings.weight_decay) == (
        1e-5,
        64,
        0,
        5e-5,
    )
    assert (MeanShiftedConfiguration().temperature, MeanShiftedConfiguration().angular) == (0.25, False)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": math.nan}, {"angular": 2}, {"head_depth": 1}])
def test_what_is_no_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(PretextConfiguration).validate_python({"name": "mean_shifted"} | settings)
