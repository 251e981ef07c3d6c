"""What every pretext task promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.heads import window_vectors
from tests.training.support import SIDE, make_encoder, random_crops
from training.pretext import PRETEXTS, PretextConfiguration, PretextTask, create_pretext


@pytest.mark.parametrize("name", PRETEXTS)
def test_a_name_makes_a_configuration_and_its_task(name: str) -> None:
    configuration: Any = TypeAdapter(PretextConfiguration).validate_python({"name": name})
    assert type(configuration) is PRETEXTS[name]
    assert TypeAdapter(PretextConfiguration).validate_json(configuration.model_dump_json()) == configuration
    task = create_pretext(configuration, encoder=make_encoder(), crop_size=SIDE)
    assert isinstance(task, PretextTask)
    assert (type(task) is PretextTask) == (name == "none")


@pytest.mark.parametrize(
    "configuration",
    [
        {"name": "jigsaw"},
        {},
        {"name": "rotation", "jitter": 0.1},
        {"name": "rotation", "head_depth": -1},
        {"name": "rotnet", "head_depth": 1},
        {"name": "denoising", "noise": 0},
        {"name": "denoising", "noise": 1.5},
        {"name": "none", "seed": 1},
        {"name": "cutpaste", "task": "four_way"},
        {"name": "cutpaste", "head_width": 0},
        {"name": "cutpaste", "jitter": 0.6},
        {"name": "cutpaste", "light": 1.5},
        {"name": "cutpaste", "changed": 0},
        {"name": "cutpaste", "visible": 1.5},
        {"name": "cutpaste", "patch_side": [0.5, 0.2]},
        {"name": "cutpaste", "scar_width": [0, 0.2]},
        {"name": "cutpaste", "opacity": [0.2, 1.1]},
    ],
)
def test_a_configuration_of_no_task_is_refused(configuration: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(PretextConfiguration).validate_python(configuration)


def make_task(name: str, crop_size: int) -> PretextTask:
    torch.manual_seed(1)
    small = {"head_depth": 1, "head_width": 8}
    settings = {setting: value for setting, value in small.items() if setting in PRETEXTS[name].model_fields}
    configuration: Any = PRETEXTS[name](**settings)
    return create_pretext(configuration, encoder=make_encoder(), crop_size=crop_size).eval()


trained_tasks = pytest.mark.parametrize("name", sorted(PRETEXTS.keys() - {"none"}))


@pytest.mark.parametrize("crop_patches", [1, 2])
@trained_tasks
def test_a_step_reaches_every_parameter_of_encoder_and_head(name: str, crop_patches: int) -> None:
    task, encoder = make_task(name, crop_patches * SIDE).train(), make_encoder().train()
    crops = random_crops(16, crop_patches * SIDE)
    before = crops.clone()
    torch.manual_seed(2)
    result = task(encoder, crops)
    assert torch.equal(crops, before)
    assert result.loss.shape == result.accuracy.shape == ()
    assert 0 <= result.accuracy <= 1
    result.loss.backward()
    for parameter in (*task.parameters(), *encoder.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@trained_tasks
def test_the_seed_decides_a_step(name: str) -> None:
    task, encoder, crops = make_task(name, 2 * SIDE), make_encoder(), random_crops(8, 2 * SIDE)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(task(encoder, crops).loss.detach())

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_window_vectors_are_rows_in_the_order_of_flat_labels() -> None:
    features = torch.rand(2, 5, 3, 4)
    vectors = window_vectors(features)
    row = 0
    for b in range(2):
        for i in range(3):
            for j in range(4):
                assert torch.equal(vectors[row], features[b, :, i, j])
                row += 1
    assert row == len(vectors)
