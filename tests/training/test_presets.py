"""Settings of stage 1 that depend on the pretext task."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from training.presets import PRESETS
from training.pretext import InstanceConfiguration
from training.trainer import TrainingConfiguration

INSTANCE_TASKS = [kind().name for kind in get_args(InstanceConfiguration)]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("as_object", [False, True])
def test_a_task_brings_its_settings_and_what_is_given_wins(name: str, as_object: bool) -> None:
    pretext: Any = {"name": name}
    if as_object:
        pretext = TrainingConfiguration.model_validate({"pretext": pretext}).pretext
    settings = TrainingConfiguration(pretext=pretext)
    for field, value in PRESETS[name].items():
        assert getattr(settings, field) == value
    for field in set(TrainingConfiguration.model_fields) - set(PRESETS[name]) - {"pretext"}:
        assert getattr(settings, field) == TrainingConfiguration.model_fields[field].default
    given = TrainingConfiguration(pretext=pretext, steps=7, batch_size=5, learning_rate=0.5)
    assert (given.steps, given.batch_size, given.learning_rate) == (7, 5, 0.5)
    assert TrainingConfiguration.model_validate_json(given.model_dump_json()) == given


def test_the_contrastive_tasks_have_the_papers_batch() -> None:
    for name in ("contrastive", "distribution_augmented"):
        settings = TrainingConfiguration.model_validate({"pretext": {"name": name}})
        assert (settings.batch_size, settings.crop_patches, settings.learning_rate) == (32, 1, 0.01)


@pytest.mark.parametrize("name", INSTANCE_TASKS)
def test_a_crop_of_many_windows_is_refused_where_crops_are_told_apart(name: str) -> None:
    with pytest.raises(ValidationError, match=f"crop_patches\n.*{name} tells crops .*accepted crop_patches: 1"):
        TrainingConfiguration.model_validate({"pretext": {"name": name}, "crop_patches": 2})
    assert TrainingConfiguration.model_validate({"pretext": {"name": name}, "crop_patches": 1}).crop_patches == 1


@pytest.mark.parametrize("pretext", [None, 3, {}, {"name": None}, {"name": "jigsaw"}, {"name": ["contrastive"]}])
def test_what_names_no_task_is_refused(pretext: Any) -> None:
    with pytest.raises(ValidationError, match="pretext"):
        TrainingConfiguration.model_validate({"pretext": pretext})
