"""The contrastive tasks against a slow, obvious version of eq. 2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from models.encoders import DensePatch
from models.geometry import ScanGeometry
from training.augmentation import colour_jitter
from training.pretext import (
    Contrastive,
    ContrastiveConfiguration,
    DistributionAugmentedConfiguration,
    PretextConfiguration,
    create_pretext,
)
from training.pretext.contrastive import TRANSFORMS, Transform, info_nce, similarities

GEOMETRY = ScanGeometry()
SIDE = GEOMETRY.patch_size
SMALL = {"head_depth": 1, "head_width": 8, "head_outputs": 4}
WIDTH = 4
PLAIN, AUGMENTED = ContrastiveConfiguration(**SMALL), DistributionAugmentedConfiguration(**SMALL)
every_task = pytest.mark.parametrize("configuration", [PLAIN, AUGMENTED], ids=[PLAIN.name, AUGMENTED.name])


def make_encoder() -> DensePatch:
    torch.manual_seed(0)
    return DensePatch(GEOMETRY, width=WIDTH)


def make_task(configuration: ContrastiveConfiguration | DistributionAugmentedConfiguration) -> Contrastive:
    encoder = make_encoder()
    torch.manual_seed(1)
    task = create_pretext(configuration, encoder=encoder, crop_size=SIDE)
    assert isinstance(task, Contrastive)
    return task


def random_crops(count: int) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_info_nce(first: list[list[float]], second: list[list[float]], temperature: float) -> tuple[float, float]:
    """Eq. 2 as it is written, one term at a time, and how often the own view is nearest."""
    losses, hits = [], 0
    for i, z in enumerate(first):
        terms = [math.exp(cosine(z, other) / temperature) for other in second]
        losses.append(-math.log(terms[i] / sum(terms)))
        hits += max(terms) == terms[i]
    return sum(losses) / len(losses), hits / len(losses)


# --- eq. 2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
@pytest.mark.parametrize(("count", "dimension"), [(2, 3), (7, 5), (32, 128)])
def test_info_nce_is_eq_2(count: int, dimension: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(count)
    first = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    second = first + torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    loss, accuracy = slow_info_nce(first.tolist(), second.tolist(), temperature)
    result = info_nce(first, second, temperature)
    assert float(result.loss) == pytest.approx(loss, rel=1e-12)
    assert float(result.accuracy) == pytest.approx(accuracy, abs=1e-6)
    assert float(info_nce(first.float(), second.float(), temperature).loss) == pytest.approx(loss, rel=1e-5, abs=1e-6)


def test_info_nce_has_one_direction() -> None:
    """Each view 1 against all views 2, and not the other way round as well."""
    first, second = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there, back = info_nce(first, second, 0.2).loss, info_nce(second, first, 0.2).loss
    assert not torch.isclose(there, back, rtol=0.01)
    assert float(back) == pytest.approx(slow_info_nce(second.tolist(), first.tolist(), 0.2)[0], rel=1e-12)


def test_info_nce_of_views_that_are_all_alike_is_a_guess_among_them() -> None:
    alike = torch.ones(8, 3)
    assert float(info_nce(alike, alike, 0.2).loss) == pytest.approx(math.log(8), rel=1e-6)


def test_info_nce_does_not_depend_on_length() -> None:
    first, second = torch.randn(2, 6, 4, dtype=torch.float64)
    scaled = info_nce(first * torch.rand(6, 1) * 9, second * 3, 0.2)
    torch.testing.assert_close(scaled.loss, info_nce(first, second, 0.2).loss)


def test_similarities_are_not_rounded_by_autocast() -> None:
    first, second = torch.randn(2, 6, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = similarities(first, second)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, similarities(first, second))
    assert similarities(first.bfloat16(), second.bfloat16()).dtype == torch.float32


# --- the tasks --------------------------------------------------------------------------------------------------------


@every_task
def test_a_step_is_eq_2_on_two_views_through_encoder_and_head(configuration: Any) -> None:
    task, encoder, crops = make_task(configuration).eval(), make_encoder().eval(), random_crops(5)
    torch.manual_seed(3)
    with torch.no_grad():
        result = task(encoder, crops)
        torch.manual_seed(3)
        instances = task.draw_instances(crops)
        views = [task.augment(instances), task.augment(instances)]
        assert not torch.equal(*views)
        first, second = ([task.head(encoder.features(x[None])[:, :, 0, 0])[0] for x in view] for view in views)
    # One vector after the other, in evaluation mode, where batch norm does not mix them.
    rows = [[row.double().tolist() for row in outputs] for outputs in (first, second)]
    loss, accuracy = slow_info_nce(rows[0], rows[1], configuration.temperature)
    assert float(result.loss) == pytest.approx(loss, rel=1e-4)
    assert float(result.accuracy) == pytest.approx(accuracy, abs=1e-6)


@every_task
def test_a_step_reaches_every_parameter_of_encoder_and_head(configuration: Any) -> None:
    task, encoder, crops = make_task(configuration), make_encoder(), random_crops(16)
    before = crops.clone()
    torch.manual_seed(2)
    result = task(encoder, crops)
    assert torch.equal(crops, before)
    result.loss.backward()
    for parameter in (*task.parameters(), *encoder.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@every_task
def test_the_seed_decides_a_step(configuration: Any) -> None:
    task, encoder, crops = make_task(configuration).eval(), make_encoder().eval(), random_crops(8)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(task(encoder, crops).loss.detach())

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


@every_task
def test_learning_tells_instances_apart(configuration: Any) -> None:
    """With views that are easily recognised the loss falls far below a guess's."""
    task, encoder = make_task(configuration), make_encoder()
    task.augment = colour_jitter(0.1)
    optimizer = torch.optim.SGD([*task.parameters(), *encoder.parameters()], lr=0.02, momentum=0.9)
    coarse = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    crops = F.interpolate(coarse, size=SIDE, mode="bilinear")
    torch.manual_seed(0)
    results = []
    for _ in range(60):
        result = task(encoder, crops)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        results.append(torch.stack([result.loss.detach(), result.accuracy]))
    loss, accuracy = torch.stack(results[-5:]).mean(dim=0).tolist()
    assert loss < 0.7 * math.log(16)
    assert accuracy > 4 / 16


@every_task
def test_the_papers_settings_are_the_defaults(configuration: Any) -> None:
    defaults = type(configuration)()
    assert defaults.temperature == 0.2
    task = make_task(defaults)
    layers = [layer for layer in task.head if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [512] * 8 + [128]
    assert layers[-1].bias is None


# --- distribution augmentation ----------------------------------------------------------------------------------------


def by_numpy(crop: Tensor, name: str) -> Tensor:
    """The transform that a name says."""
    pixels = crop.permute(1, 2, 0).numpy()  # (C, C, 3)
    if "rot" in name:
        pixels = np.rot90(pixels, int(name[-3:].removeprefix("t")) // 90)
    if "hflip" in name:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def test_the_transforms_are_the_seven_other_symmetries_of_the_square() -> None:
    [crop] = random_crops(1)
    results = []
    for name in TRANSFORMS:
        task = make_task(DistributionAugmentedConfiguration(transforms=(name,), **SMALL))
        drawn = task.draw_instances(crop.expand(64, -1, -1, -1))
        expected = by_numpy(crop, name)
        same = [bool(torch.equal(instance, crop)) for instance in drawn]
        assert all(torch.equal(instance, expected) for instance, kept in zip(drawn, same, strict=True) if not kept)
        assert 16 < sum(same) < 48  # as it is, or transformed
        results.append(expected)
    distinct = {tuple(result.flatten().tolist()) for result in [crop, *results]}
    assert len(distinct) == 8


def test_the_copies_are_drawn_alike_and_independently() -> None:
    task = make_task(DistributionAugmentedConfiguration(transforms=("hflip", "rot90", "rot180", "rot270"), **SMALL))
    crops = random_crops(2)[:1].expand(500, -1, -1, -1)
    torch.manual_seed(0)
    drawn = task.draw_instances(crops)
    kinds = [crops[0], *(by_numpy(crops[0], name) for name in task.transforms)]
    counts = [sum(torch.equal(instance, kind) for instance in drawn) for kind in kinds]
    assert sum(counts) == len(drawn)
    assert counts == pytest.approx([100] * 5, abs=40)  # more than four standard deviations


def test_each_instance_is_of_its_own_crop() -> None:
    task = make_task(AUGMENTED)
    crops = torch.rand(16, 3, 1, 1).expand(-1, -1, SIDE, SIDE)  # flat: no transform changes one
    assert torch.equal(task.draw_instances(crops), crops)


def test_without_distribution_augmentation_a_crop_is_the_instance() -> None:
    crops = random_crops(4)
    assert make_task(PLAIN).draw_instances(crops) is crops


def flips(task: Contrastive) -> bool:
    """Whether some views of a crop that brightens to the right brighten to the left."""
    ramp = torch.linspace(0, 1, SIDE).expand(64, 3, SIDE, SIDE)
    torch.manual_seed(0)
    views = task.augment(ramp).mean(dim=(1, 2))
    return bool((views[:, 0] > views[:, -1] + 0.05).any())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_flip_is_in_the_distribution_or_a_view_not_both(name: Transform) -> None:
    task = make_task(DistributionAugmentedConfiguration(transforms=("rot180", name) if name != "rot180" else (name,)))
    assert flips(task) == ("hflip" not in name)


@every_task
@pytest.mark.parametrize("flip", [True, False])
def test_views_flip_where_nothing_is_mirrored_and_the_setting_is_not_off(configuration: Any, flip: bool) -> None:
    assert configuration.flip
    assert flips(make_task(configuration.model_copy(update={"flip": flip}))) == flip


# --- configuration ----------------------------------------------------------------------------------------------------


@every_task
def test_a_configuration_comes_back_from_json(configuration: Any) -> None:
    parsed: Any = TypeAdapter(PretextConfiguration).validate_json(configuration.model_dump_json())
    assert parsed == configuration


@pytest.mark.parametrize(
    "configuration",
    [
        {"name": "contrastive", "temperature": 0},
        {"name": "contrastive", "temperature": math.inf},
        {"name": "contrastive", "head_outputs": 1},
        {"name": "contrastive", "transforms": ["rot90"]},
        {"name": "distribution_augmented", "transforms": []},
        {"name": "distribution_augmented", "transforms": ["rot45"]},
        {"name": "distribution_augmented", "transforms": ["rot90", "rot90"]},
    ],
)
def test_a_configuration_of_no_task_is_refused(configuration: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(PretextConfiguration).validate_python(configuration)
