"""What the analyses vary."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.analysis.definitions import ANALYSES, CLASSIFIERS, PAPER_MEANS, VARIANTS, Analysis
from training.pretext import ContrastiveConfiguration, DistributionAugmentedConfiguration
from training.reproduction.settings import SEMANTIC

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "analysis.md"


def variant_of(analysis: str, method: str, value: str) -> str:
    [point] = ANALYSES[analysis].points([method], [value])
    return point.variant


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=list(ANALYSES))
def test_every_value_is_a_variant_of_its_own(analysis: Analysis) -> None:
    points = analysis.points(analysis.methods, analysis.values)
    assert len(points) == len(analysis.methods) * len(analysis.values)
    assert len({point.variant for point in points}) == len(points)
    assert {point.variant for point in points} <= set(VARIANTS)
    assert set(analysis.classifiers) <= set(CLASSIFIERS)


@pytest.mark.parametrize("name", ANALYSES)
def test_the_document_has_it(name: str) -> None:
    assert f"| `{name}` |" in DOCUMENT.read_text()


def test_the_paper_s_own_setting_is_the_paper_s_own_method() -> None:
    for analysis, value in (
        ("head-depth", "8"), ("representation", "paper"), ("training-set-size", "whole"),
        ("random-rotation", "upright"), ("contamination", "0"), ("clean-images", "0"), ("uniformity", "head-depth 8"),
    ):  # fmt: skip
        assert variant_of(analysis, "contrastive", value) == "contrastive"
    assert variant_of("head-depth", "rotation", "0") == "rotnet"


def test_distribution_augmentations_vary_the_union_alone() -> None:
    """A flips in the tables' contrastive tasks, but in none of these; the authors' unions grow one by one."""
    unions = []
    for value in ANALYSES["distribution-augmentations"].values:
        pretext = VARIANTS[variant_of("distribution-augmentations", "distribution_augmented", value)].pretext
        assert isinstance(pretext, ContrastiveConfiguration | DistributionAugmentedConfiguration)
        unions.append(() if isinstance(pretext, ContrastiveConfiguration) else pretext.transforms)
        usual = type(pretext)().model_dump() | {"transforms": unions[-1]}
        assert pretext.model_dump().items() <= (usual | {"flip": False}).items()
    types = unions[:8]
    assert [len(union) for union in types] == list(range(8))
    assert all(union == types[-1][:number] for number, union in enumerate(types))
    assert types[-1] == ("hflip", "rot90", "hflip_rot90", "rot180", "hflip_rot180", "rot270", "hflip_rot270")


def test_analyses_share_what_they_train() -> None:
    assert variant_of("uniformity", "contrastive", "batch-size 64") == variant_of("batch-size", "contrastive", "64")
    assert variant_of("clean-images", "rotation", "5") == variant_of("contamination", "rotation", "5")


def test_only_the_paper_s_own_setting_stands_beside_its_tables() -> None:
    papers = {name for name, variant in VARIANTS.items() if variant.paper}
    assert papers == {
        "rotnet", "rotation", "contrastive", "distribution_augmented", variant_of("batch-size", "contrastive", "32"),
    }  # fmt: skip
    assert {name for _, name in PAPER_MEANS} <= set(VARIANTS) - papers


def test_a_value_changes_what_it_names() -> None:
    union = VARIANTS[variant_of("distribution-augmentations", "distribution_augmented", "hflip+rot90")].pretext
    assert isinstance(union, DistributionAugmentedConfiguration)
    assert union.transforms == ("hflip", "rot90")
    assert VARIANTS[variant_of("head-depth", "rotation", "3")].pretext.model_dump()["head_depth"] == 3
    assert VARIANTS[variant_of("training-set-size", "rotation", "250")].train_images == 250
    assert VARIANTS[variant_of("contamination", "rotation", "0.5")].outliers == 0.5
    assert VARIANTS[variant_of("random-rotation", "rotation", "turned")].turned


def test_another_batch_sees_as_many_images() -> None:
    for value in ANALYSES["batch-size"].values:
        variant = VARIANTS[variant_of("batch-size", "contrastive", value)]
        cpu, paper = (SEMANTIC[size].training(variant, 6400, 0) for size in ("cpu", "paper"))
        assert cpu.batch_size == paper.batch_size == int(value)
        assert 700 * 32 - cpu.batch_size < cpu.steps * cpu.batch_size <= 700 * 32
        assert paper.steps == 2048 * (6400 // int(value))


def test_a_classifier_of_clean_images_needs_all_of_them() -> None:
    few = VARIANTS[variant_of("training-set-size", "rotation", "50")]
    assert [name for name, classifier in CLASSIFIERS.items() if few.fits(classifier)] == ["f", "g"]
    assert all(VARIANTS["rotation"].fits(classifier) for classifier in CLASSIFIERS.values())
