"""Every pretext task, density and encoder there is, end to end: train, publish, evaluate, serve over HTTP, score.

The rows are made of the registries: a new member is covered without a line here. Variants of a member are listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from pydantic import ValidationError

from models.densities import DENSITIES
from models.detector import Detector
from models.encoders import ENCODERS
from models.images import read_image
from models.store import ModelStore
from service.server import serving
from service.settings import load_settings
from tests.cli.support import CATEGORY, COMPUTE, run_main
from tests.models.test_pretrained_patch import WEIGHTS
from training.fit import FitConfiguration
from training.pretext import PRETEXTS, DistributionAugmentedConfiguration
from training.synthetic import generate


class Row(NamedTuple):
    """One combination.

    Attributes:
        members: of an ensemble.
        variant: a name, where it is not all at its defaults.
        options: of ``plumbline train`` that make it that, as the documents have them.
        settings: fields of the configuration that it then has.
    """

    pretext: str
    density: str
    encoder: str
    members: int = 1
    variant: str = ""
    options: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()


DEFAULT = FitConfiguration()
FIRST = Row(DEFAULT.training.pretext.name, DEFAULT.detector.density.name, DEFAULT.detector.encoder.name)
# A detector that is made in seconds and knows nothing; the encoders that are not named are small enough as they are.
SMALL_ENCODERS = {"dense_patch": ("--width", "2"), "resnet18_patch": ("--stem", "imagenet")}
SIDE = 64  # of images
SCHEDULE = ("--steps", "2", "--batch-size", "4", "--crop-patches", "1")
VARIANTS = (
    FIRST._replace(
        encoder="resnet18_patch", variant="binary, image level",
        options=("--patch-size", str(SIDE), "--set", "training.pretext.task=binary"),
        settings=(("training.pretext.task", "binary"), ("detector.geometry.patch_size", SIDE)),
    ),
    FIRST._replace(
        variant="scar",
        options=("--set", "training.pretext.task=scar"), settings=(("training.pretext.task", "scar"),),
    ),
    FIRST._replace(
        density="one_class_svm", variant="linear",
        options=("--kernel", "linear"), settings=(("detector.density.kernel", "linear"),),
    ),
    FIRST._replace(
        density="nearest_neighbours", variant="2 neighbours",
        options=("--neighbours", "2"), settings=(("detector.density.neighbours", 2),),
    ),
    FIRST._replace(
        pretext="rotation", density="rotation_classifier", variant="upright",
        options=("--set", "detector.density.score=upright"), settings=(("detector.density.score", "upright"),),
    ),
    FIRST._replace(
        pretext="distribution_augmented", members=2, variant="augmentations",
        options=("--member", 'transforms=["rot180"]'),
        settings=(("pretexts", [DistributionAugmentedConfiguration(transforms=("rot180",)).model_dump(mode="json")]),),
    ),
)  # fmt: skip


def fits(row: Row) -> bool:
    """Whether the configuration is one: some members need others."""
    detector = {"encoder": {"name": row.encoder}, "density": {"name": row.density}}
    try:
        FitConfiguration.model_validate({"detector": detector, "training": {"pretext": {"name": row.pretext}}})
    except ValidationError:
        return False
    return True


def rows() -> list[Row]:
    """Each member of each registry with the defaults for the rest, or with what it needs instead."""
    found = [Row(*FIRST[:3], members=2)]
    for field, registry in (("pretext", PRETEXTS), ("density", DENSITIES), ("encoder", ENCODERS)):
        for name in registry:
            change: dict[str, Any] = {field: name}
            row = FIRST._replace(**change)
            others = [row, *(row._replace(pretext=pretext) for pretext in PRETEXTS if field != "pretext")]
            found.append(next(filter(fits, others)))
    return [*dict.fromkeys(found), *VARIANTS]


def label(row: Row) -> str:
    return "-".join([*map(str, row[:4]), *filter(None, [row.variant])])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("data"), CATEGORY, train=8, test_good=1, test_defects=1, image_size=SIDE)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A verb sets the thread counts of the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("row", rows(), ids=label)
def test_end_to_end(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, row: Row) -> None:
    if row.encoder == "pretrained_patch" and not WEIGHTS.is_file():
        pytest.skip(f"no {WEIGHTS}; set TORCH_HOME")
    models = tmp_path / "models"

    def run(verb: str, *arguments: str | Path) -> dict[str, Any]:
        where = ("--data", data, "--models", models, "--json", *COMPUTE)
        outcome = run_main(capsys, verb, CATEGORY, *where, *arguments)
        assert outcome.status == 0, outcome.errors
        return outcome.result

    trained = run(
        "train", "--runs", tmp_path / "runs", "--image-size", str(SIDE),
        *(() if "--member" in row.options else ("--ensemble", str(row.members))),
        "--pretext", row.pretext, *(() if row.pretext == "none" else SCHEDULE),
        "--density", row.density, *(() if row.density == "rotation_classifier" else ("--bank-size", "200")),
        "--encoder", row.encoder, *SMALL_ENCODERS.get(row.encoder, ()), *row.options,
    )  # fmt: skip
    assert trained["trained"][0]["version"] == 1
    metrics = run("evaluate", "--out", tmp_path / "report")
    assert all(0 <= metrics[name] <= 1 for name in ("image_auroc", "pixel_auroc"))

    detector = Detector.load(ModelStore(models).folder(CATEGORY, 1), "cpu")
    configuration = detector.scan.configuration
    assert (configuration.density.name, configuration.encoder.name) == (row.density, row.encoder)
    fields = {"detector": configuration.model_dump(mode="json"), **detector.training["fit"]}
    assert fields["training"]["pretext"]["name"] == row.pretext
    for path, value in row.settings:
        assert reduce(getitem, path.split("."), fields) == value
    assert len(detector.scan.members) == row.members
    image = next((data / "test" / "scratch").iterdir())
    [expected] = detector.predict([read_image(image)])
    assert (expected.score_map.std() > 1e-6) == (configuration.geometry.grid_size > 1)
    with serving(load_settings(models=models, port=0, device="cpu", threads=1, records="none")) as url:
        response = httpx.post(f"{url}/v1/categories/{CATEGORY}/score", files={"image": image.read_bytes()}, timeout=60)
    assert response.status_code == 200, response.text
    assert math.isfinite(response.json()["image_score"])
    assert response.json()["image_score"] == pytest.approx(expected.image_score, rel=1e-5)
    assert response.json()["verdict"] == expected.verdict


def test_every_member_has_a_row() -> None:
    for number, registry in enumerate((PRETEXTS, DENSITIES, ENCODERS)):
        assert {row[number] for row in rows()} == registry.keys()
