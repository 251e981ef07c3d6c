"""``plumbline evaluate`` and ``plumbline score``, with a detector that ``plumbline train`` made."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.detector import Detector
from models.images import read_image
from models.operation import Operation
from models.prediction import Prediction
from models.store import ModelStore
from models.store_errors import StoreReadOnly
from service.rendering import render_overlay
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE, run_program

METRICS = (
    "image_auroc",
    "pixel_auroc",
    "image_ap",
    "pixel_ap",
    "aupro_30",
    "aupro_05",
    "image_f1_max",
    "false_reject_rate",
    "escape_rate",
)


@pytest.fixture(scope="module")
def detector(models: Path) -> Detector:
    return Detector.load(ModelStore(models).folder(CATEGORY, 1), "cpu")


def test_evaluate(run: Run, data: Path, own_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    outcome = run(
        "evaluate", CATEGORY, "--data", data, "--models", own_models, "--out", out, "--json", *COMPUTE
    )  # fmt: skip
    assert outcome.status == 0
    assert set(METRICS) < set(outcome.result)
    assert json.loads((out / "metrics.json").read_text()) == outcome.result
    for name in METRICS:
        [line] = [line for line in outcome.output.splitlines()[:-1] if line.split()[0] == name]
        assert line.split()[1] == f"{outcome.result[name]:.4f}"
    with (out / "images.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 2 + 3  # two good, one of each defect
    assert {path.suffix for path in out.iterdir()} == {".json", ".csv", ".png"}
    assert ModelStore(own_models).records(CATEGORY, 1) == {"metrics": outcome.result}


def test_evaluate_judges_by_the_operation_in_force(run: Run, data: Path, own_models: Path, tmp_path: Path) -> None:
    assert run("models", "operation", CATEGORY, "--models", own_models, "--false-reject-rate", "0.5").status == 0
    arguments = ("--data", data, "--models", own_models, "--out", tmp_path / "report", "--json", *COMPUTE)
    outcome = run("evaluate", CATEGORY, *arguments)
    assert outcome.status == 0, outcome.errors
    assert (outcome.result["operation"], outcome.result["operating_point"]["false_reject_rate"]) == (1, 0.5)


def test_evaluate_a_version_in_a_folder_that_may_only_be_read(
    run: Run, data: Path, own_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(*arguments: object) -> None:
        raise StoreReadOnly("this process may not write to it")

    monkeypatch.setattr(ModelStore, "record", record)
    arguments = ("--data", data, "--models", own_models, "--out", tmp_path / "report", *COMPUTE)
    outcome = run("evaluate", CATEGORY, *arguments)
    assert outcome.status == 0
    assert "image_auroc" in outcome.output
    assert "not kept beside the version: this process may not write to it" in outcome.errors


def test_evaluate_takes_the_categorys_own_folder_and_a_version(
    run: Run, data: Path, own_models: Path, tmp_path: Path
) -> None:
    (own_models / CATEGORY / "active").unlink()
    arguments = ("--data", data / CATEGORY, "--models", own_models, "--out", tmp_path / "report", *COMPUTE)
    run("evaluate", CATEGORY, *arguments).assert_refused(2, "no active version")
    assert run("evaluate", CATEGORY, *arguments, "--version-number", "1").status == 0


def test_evaluate_without_test_images(run: Run, data: Path, models: Path, tmp_path: Path) -> None:
    plain = data / CATEGORY / "train" / "good"
    run(
        "evaluate", CATEGORY, "--data", plain, "--models", models, "--out", tmp_path / "report", *COMPUTE
    ).assert_refused(2, "no test images")  # fmt: skip
    assert not (tmp_path / "report").exists()


def test_a_file_that_is_scored_may_have_any_name(run: Run, data: Path, models: Path, tmp_path: Path) -> None:
    image = Path(os.fsdecode(bytes(tmp_path) + b"/gr\xfcn.png"))  # no UTF-8
    shutil.copy(data / CATEGORY / "test" / "good" / "000.png", image)
    outcome = run("score", CATEGORY, image, "--models", models, "--out", tmp_path / "out", "--json", *COMPUTE)
    assert outcome.status == 0, outcome.errors
    assert outcome.output.startswith(f"{tmp_path}/gr\\udcfcn.png: ")
    assert outcome.result["images"][0]["image"] == str(image)
    assert Path(outcome.result["images"][0]["heatmap"]).is_file()


def test_score_says_what_the_detector_says(run: Run, data: Path, models: Path, detector: Detector) -> None:
    images = sorted((data / CATEGORY / "test").glob("*/000.png"))
    outcome = run("score", CATEGORY, *images, "--models", models, "--json", *COMPUTE)
    assert outcome.status == 0
    result = outcome.result
    assert (result["category"], result["version"]) == (CATEGORY, 1)
    assert result["threshold"] == detector.operating_point.image_threshold
    assert [entry["image"] for entry in result["images"]] == [str(image) for image in images]
    for image, entry, line in zip(images, result["images"], outcome.output.splitlines(), strict=False):
        [prediction] = detector.predict([read_image(image)])
        assert entry["verdict"] == prediction.verdict
        assert entry["image_score"] == pytest.approx(prediction.image_score, rel=1e-5)
        assert entry["p_value"] == prediction.p_value
        assert len(entry["regions"]) == len(prediction.regions)
        assert line.startswith(f"{image}: {prediction.verdict}, score {prediction.image_score:.4f}")


def test_score_writes_heatmaps_of_the_originals_size(run: Run, models: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [tmp_path / "left" / "part.png", tmp_path / "right" / "part.jpg"]  # of the same name
    for path, shape in zip(images, ((70, 90, 3), (33, 200, 3)), strict=True):
        path.parent.mkdir()
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
    out = tmp_path / "deep" / "scores"
    outcome = run("score", CATEGORY, *images, "--models", models, "--out", out, "--json", *COMPUTE)
    assert outcome.status == 0
    heatmaps = [Path(entry["heatmap"]) for entry in outcome.result["images"]]
    assert len(set(heatmaps)) == 2
    for image, heatmap in zip(images, heatmaps, strict=True):
        assert heatmap.parent == out
        assert read_image(heatmap).shape == read_image(image).shape
    assert json.loads((out / "scores.json").read_text()) == outcome.result


def test_a_file_that_is_no_image_does_not_lose_the_others(run: Run, data: Path, models: Path, tmp_path: Path) -> None:
    images = sorted((data / CATEGORY / "test").glob("*/000.png"))[:2]
    torn, missing = tmp_path / "torn.png", tmp_path / "missing.png"
    torn.write_bytes(images[0].read_bytes()[:300])
    out = tmp_path / "scores"
    files = [torn, images[0], missing, images[1]]
    outcome = run("score", CATEGORY, *files, "--models", models, "--out", out, "--json", *COMPUTE)
    assert outcome.status == 2
    *reported, sentence = outcome.errors.splitlines()
    assert [line.split(":")[0] for line in reported] == [str(torn), str(missing)]
    assert sentence.startswith(f"plumbline: 2 of 4 files could not be scored; the first, {torn}: ")

    result = outcome.result
    assert f"plumbline: {result.pop('error')}" == sentence
    assert [entry["image"] for entry in result["images"]] == [str(file) for file in files]
    assert ["error" in entry for entry in result["images"]] == [True, False, True, False]
    assert json.loads((out / "scores.json").read_text()) == result

    alone = run("score", CATEGORY, *images, "--models", models, "--out", tmp_path / "alone", "--json", *COMPUTE).result
    for entry, other in zip(
        (entry for entry in result["images"] if "error" not in entry), alone["images"], strict=True
    ):
        assert Path(entry.pop("heatmap")).read_bytes() == Path(other.pop("heatmap")).read_bytes()
        assert entry == other


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted, after 1 of 2 files"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.png"), 1, "x.png: No space left on device, after 1 of 2"),
    ],
    ids=["interrupted", "disk full"],
)
def test_what_was_scored_before_it_was_broken_off_is_told(
    run: Run,
    data: Path,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    status: int,
    said: str,
) -> None:
    images = sorted((data / CATEGORY / "test").glob("*/000.png"))[:2]
    before = run("score", CATEGORY, images[0], "--models", models, "--out", tmp_path / "all", "--json", *COMPUTE).result

    def render(*arguments: Any, **options: Any) -> bytes:
        if drawn:
            raise failure
        drawn.append(1)
        return render_overlay(*arguments, **options)

    drawn: list[int] = []
    monkeypatch.setattr("service.rendering.render_overlay", render)
    out = tmp_path / "scores"
    outcome = run("score", CATEGORY, *images, "--models", models, "--out", out, "--json", *COMPUTE)
    assert outcome.status == status
    result = outcome.result
    assert result.pop("error").startswith(said)
    assert json.loads((out / "scores.json").read_text()) == result
    [entry], [other] = result["images"], before["images"]
    entry.pop("heatmap"), other.pop("heatmap")
    assert result == before


def test_images_are_read_one_after_the_other(
    run: Run, data: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is scored before the next is decoded: a folder of large images does not fill the memory."""
    images = sorted((data / CATEGORY / "test").glob("*/000.png"))
    seen: list[str] = []

    def read(path: Path) -> NDArray[np.uint8]:
        seen.append("read")
        return read_image(path)

    def predict(
        detector: Detector, images: list[NDArray[np.uint8]], operation: Operation | None = None
    ) -> list[Prediction]:
        seen.append("score")
        return original(detector, images, operation)

    original = Detector.predict
    monkeypatch.setattr("models.images.read_image", read)
    monkeypatch.setattr(Detector, "predict", predict)
    assert run("score", CATEGORY, *images, "--models", models, *COMPUTE).status == 0
    assert seen == ["read", "score"] * len(images)


def test_the_installed_program_scores(data: Path, desk: Path, models: Path) -> None:
    image = next((data / CATEGORY / "test" / "good").iterdir())
    outcome = run_program("score", CATEGORY, image, "--json", *COMPUTE, cwd=desk)  # the store of the folder it is in
    assert outcome.status == 0, outcome.errors
    assert [entry["image"] for entry in outcome.result["images"]] == [str(image)]
