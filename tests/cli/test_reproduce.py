"""``plumbline reproduce``: both tables at the smallest size, the refusals, and an end by signal."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import Run
from tests.cli.support import COMPUTE, PROGRAM, Outcome
from tests.training.reproduction.support import write_fashion_mnist
from training.run_files import CHECKPOINT_FILE

WEIGHTS = Path(torch.hub.get_dir()) / "checkpoints" / "mobilenet_v2-b0353104.pth"
SMOKE = ("--size", "smoke", "--json", *COMPUTE)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Fashion-MNIST; only to be read."""
    return write_fashion_mnist(tmp_path_factory.mktemp("fashion"))


@pytest.fixture
def semantic(run: Run, fashion: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """The semantic table of Fashion-MNIST, with more arguments."""
    fixed = ("reproduce", "semantic", "--dataset", "fashion-mnist", "--data", fashion, "--out", tmp_path / "study")
    return lambda *arguments: run(*fixed, *SMOKE, *arguments)


def test_semantic_writes_tables_beside_the_papers(semantic: Callable[..., Outcome], tmp_path: Path) -> None:
    chosen = ("--classes", "0,4", "--methods", "rotation", "--classifiers", "kernel_density", "--seeds", "2")
    outcome = semantic(*chosen)
    assert outcome.status == 0, outcome.errors
    table = outcome.result["table"]
    assert [(line["subject"], line["seeds"]) for line in table] == [("0", 2), ("4", 2), ("mean (2 of 10)", 2)]
    assert [line["paper"]["mean"] for line in table[:2]] == [95.2, 93.9]
    assert "| **mean (2 of 10)** | rotation | kernel_density " in outcome.output
    folder = tmp_path / "study"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "study.json", "cells.csv", "runs", "table.csv", "table.md", "table.png",
    }  # fmt: skip
    assert len((folder / "cells.csv").read_text().splitlines()) == 1 + 2 * 2
    again = semantic(*chosen)
    assert "0 figures to measure" in again.errors
    assert again.result["table"] == table


def test_mvtec_takes_what_is_there_and_says_what_is_missing(run: Run, data: Path, tmp_path: Path) -> None:
    arguments = ("--methods", "rotation", "--classifiers", "kernel_density", *SMOKE)
    outcome = run("reproduce", "mvtec", "--data", data, "--out", tmp_path, *arguments)
    assert outcome.status == 0, outcome.errors
    assert [(line["metric"], line["subject"]) for line in outcome.result["table"]] == [
        (metric, subject)
        for metric in ("image_auroc", "pixel_auroc")
        for subject in ("tile", "texture (1 of 5)", "all (1 of 15)")
    ]
    assert [line["paper"] and line["paper"]["mean"] for line in outcome.result["table"]] == [
        None, 81.0, 86.3, None, 86.3, 93.0,
    ]  # fmt: skip
    assert len(outcome.result["missing"]) == 14
    assert "missing" in outcome.errors
    assert "zipper" in outcome.errors


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("--classes", "0,10"), ("--classes 10", "accepted: all, 0, 1")),
        (("--methods", "rotatoin"), ("rotatoin", "accepted: all, none, rotnet")),
        (("--classifiers", ","), ("--classifiers is empty; accepted: all, kernel_density",)),
        (("--methods", ""), ("--methods is empty; accepted: all, none, rotnet",)),
        (("--methods", "all,rotation"), ("--methods all,rotation: all stands alone",)),
        (("--classes", "0,all"), ("--classes 0,all: all stands alone",)),
        (("--methods", "contrastive", "--classifiers", "rotation_classifier"), ("none of --classifiers", "head")),
        (("--learning-rate", "inf"), ("learning_rate", "inf")),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(
    arguments: tuple[str, ...], mentions: tuple[str, ...], semantic: Callable[..., Outcome], tmp_path: Path
) -> None:
    semantic(*arguments).assert_refused(2, *mentions)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["mnist", "all"])
def test_an_unknown_data_set_is_refused(name: str, run: Run, fashion: Path, tmp_path: Path) -> None:
    outcome = run("reproduce", "semantic", "--dataset", name, "--data", fashion, "--out", tmp_path / "o", *SMOKE)
    outcome.assert_refused(2, f"--dataset {name}", "fashion-mnist, cifar10")


def test_a_folder_without_mvtec_is_refused(run: Run, tmp_path: Path) -> None:
    outcome = run("reproduce", "mvtec", "--data", tmp_path, "--out", tmp_path / "o", *SMOKE)
    outcome.assert_refused(2, str(tmp_path), "plumbline data mvtec")


@pytest.mark.parametrize(
    ("categories", "mentions"),
    [
        ("cable", ("--categories cable: missing in {data}, which has tile",)),
        ("tile,zipper,cable", ("--categories cable, zipper: missing in {data}, which has tile",)),
        ("cabel", ("--categories cabel is not known", "accepted: all, bottle, cable")),
        ("", ("--categories is empty",)),
    ],
)
def test_categories_that_are_not_there_are_told_from_unknown_ones(
    categories: str, mentions: tuple[str, ...], run: Run, data: Path, tmp_path: Path
) -> None:
    outcome = run("reproduce", "mvtec", "--data", data, "--out", tmp_path / "o", "--categories", categories, *SMOKE)
    assert outcome.status == 2
    for mention in mentions:
        assert mention.format(data=data) in outcome.result["error"]
    assert not (tmp_path / "o").exists()


def test_all_categories_are_those_that_are_there(run: Run, data: Path, tmp_path: Path) -> None:
    chosen = ("--categories", "all", "--methods", "none", "--classifiers", "kernel_density")
    outcome = run("reproduce", "mvtec", "--data", data, "--out", tmp_path, *chosen, *SMOKE)
    assert outcome.status == 0, outcome.errors
    assert {line["subject"] for line in outcome.result["table"]} == {"tile", "texture (1 of 5)", "all (1 of 15)"}


@pytest.mark.parametrize("folder", ["test", "ground_truth"])
def test_a_truncated_test_image_or_mask_is_named_before_training(
    folder: str, run: Run, data: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    path = next(path for path in sorted((copy / "tile" / folder).rglob("*.png")) if path.parent.name != "good")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome = run("reproduce", "mvtec", "--data", copy, "--out", tmp_path / "o", *SMOKE)
    assert outcome.status == 2
    assert f"{path}: the PNG file is truncated" in outcome.result["error"]
    assert "--categories" in outcome.result["error"]
    assert "--skip-broken" not in outcome.result["error"]
    assert not (tmp_path / "o").exists()


def test_masks_without_a_defect_are_refused_before_training(run: Run, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    for path in (copy / "tile" / "ground_truth").rglob("*.png"):
        with Image.open(path) as mask:
            Image.new("L", mask.size).save(path)
    outcome = run("reproduce", "mvtec", "--data", copy, "--out", tmp_path / "o", *SMOKE)
    assert outcome.status == 2
    assert f"no mask of {copy / 'tile'}/ground_truth has a defective pixel" in outcome.result["error"]


def test_a_foreign_file_is_refused_without_an_option_that_is_not_there(run: Run, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    (copy / "tile" / "train" / "good" / "notes.txt").write_text("foreign")
    outcome = run("reproduce", "mvtec", "--data", copy, "--out", tmp_path / "o", *SMOKE)
    assert outcome.status == 2
    assert "notes.txt: not an image by its extension" in outcome.result["error"]
    assert "--skip-broken" not in outcome.result["error"]


@pytest.mark.parametrize("verb", [("reproduce", "semantic"), ("analyse", "representation")])
def test_a_mistyped_folder_of_data_is_not_made(verb: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    outcome = run(*verb, "--dataset", "fashion-mnist", "--data", nowhere, "--out", tmp_path / "o", *SMOKE)
    outcome.assert_refused(2, f"{nowhere} does not exist")
    assert not list(tmp_path.iterdir())


def test_test_images_of_one_kind_are_refused_before_training(run: Run, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(copy / "tile" / "test" / "good")
    outcome = run("reproduce", "mvtec", "--data", copy, "--out", tmp_path / "o", *SMOKE)
    assert outcome.status == 2
    assert "must hold both good images and defective ones" in outcome.result["error"]
    assert "--categories" in outcome.result["error"]
    assert not (tmp_path / "o").exists()


def test_another_size_in_the_same_folder_is_refused(semantic: Callable[..., Outcome]) -> None:
    chosen = ("--classes", "0", "--methods", "rotation", "--classifiers", "kernel_density")
    assert semantic(*chosen).status == 0
    outcome = semantic(*chosen, "--size", "cpu")
    assert outcome.status == 2
    assert "another --out" in outcome.result["error"]


def test_a_study_goes_on_in_the_precision_that_it_was_begun_in(
    semantic: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("--classes", "0", "--methods", "rotation", "--classifiers", "kernel_density", "--keep-checkpoints")
    monkeypatch.setattr("training.trainer.computes_bfloat16", lambda device: True)
    assert semantic(*chosen).status == 0
    [checkpoint] = (tmp_path / "study" / "runs").rglob(CHECKPOINT_FILE)
    identity = json.loads(torch.load(checkpoint, weights_only=True)["identity"])
    assert identity["training"]["precision"] == "bfloat16"
    monkeypatch.setattr("training.trainer.computes_bfloat16", lambda device: False)  # another machine
    outcome = semantic(*chosen, "--seeds", "2")
    assert outcome.status == 2
    assert "size.precision is bfloat16 there and float32 now" in outcome.result["error"]
    outcome = semantic(*chosen, "--seeds", "2", "--precision", "bfloat16")
    assert outcome.status == 0, outcome.errors
    assert outcome.result["table"][0]["seeds"] == 2


def test_weights_that_cannot_be_had_are_refused_before_training(
    semantic: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    outcome = semantic("--methods", "none,mean_shifted")
    assert outcome.status == 2, outcome.errors
    assert WEIGHTS.name in outcome.result["error"]
    assert not (tmp_path / "study").exists()


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no {WEIGHTS}; set TORCH_HOME")
def test_pretrained_methods_are_measured(semantic: Callable[..., Outcome]) -> None:
    chosen = ("--methods", "imagenet,mean_shifted", "--classifiers", "nearest_neighbours_2", "--classes", "0")
    outcome = semantic(*chosen)
    assert outcome.status == 0, outcome.errors
    figures = {line["method"]: line["measured"]["mean"] for line in outcome.result["table"] if line["subject"] == "0"}
    assert set(figures) == {"imagenet", "mean_shifted"}
    assert min(figures.values()) > 90  # a bar in a place of its own is no puzzle for a network that knows ImageNet


def test_a_signal_leaves_what_the_same_command_goes_on_with(fashion: Path, tmp_path: Path) -> None:
    """Two processes at work, and only the first is told to stop."""
    command: list[str | Path] = [
        PROGRAM, "reproduce", "semantic", "--dataset", "fashion-mnist", "--data", fashion, "--out", tmp_path,
        "--size", "cpu", "--classes", "0,1", "--methods", "none,rotation", "--classifiers", "kernel_density",
        "--workers", "2", "--json", *COMPUTE,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = [tmp_path / "runs" / f"{subject}-rotation-seed-0" / "log.jsonl" for subject in "01"]
    end = time.monotonic() + 240
    while not all(log.exists() and log.stat().st_size for log in logs) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    result = json.loads(output.splitlines()[-1])
    assert "run the same command again" in result["error"]
    # What was finished, of random weights.
    assert {(line["subject"], line["method"]) for line in result["table"]} == {
        ("0", "none"), ("1", "none"), ("mean (2 of 10)", "none"),
    }  # fmt: skip
    assert "| none " in (tmp_path / "table.md").read_text()
    assert "Traceback" not in errors
    for log in logs:
        step = torch.load(log.with_name(CHECKPOINT_FILE), weights_only=True)["step"]
        assert 10 <= step < 700
