"""``plumbline train``: what it publishes, and runs that were interrupted."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cli.progress import TrainingBar, training_bar
from models.calibration import TARGET_RATE
from models.densities import KernelDensityConfiguration, NearestNeighboursConfiguration
from models.detector import Detector
from models.encoders import WIDTHS
from models.operation import Operations
from models.store import ModelStore
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE, PROGRAM, TINY, Outcome, files_in, run_main
from training.fit import FitConfiguration
from training.pretext import CutPasteConfiguration
from training.run_files import CHECKPOINT_FILE, LOG_FILE
from training.trainer import Progress


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, ...]:
    return ("--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs"))


def test_help_says_what_is_taken_where_nothing_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    text = " ".join(run("train", "--help").output.split())
    fit = FitConfiguration()
    training = fit.training
    for said in (
        f"of the optimizer (cutpaste: {training.steps})",
        f"crops a step (cutpaste: {training.batch_size})",
        f"side of a crop in patches (cutpaste: {training.crop_patches})",
        f"at the beginning (cutpaste: {training.learning_rate})",
        f"of all that is drawn at random (default: {training.seed})",
        f"share of the good images held out (default: {fit.calibration_fraction})",
        f"how an image becomes square (default: {fit.detector.resize})",
        f"0 to 1 (default: {CutPasteConfiguration().light})",
        f"nearest_neighbours {NearestNeighboursConfiguration().neighbours}, "
        f"kernel_density {KernelDensityConfiguration().neighbours}",
        f"share of good parts to reject (default: {TARGET_RATE}, or",
    ):
        assert said in text


def test_train_publishes_an_active_version(trained: Outcome, desk: Path) -> None:
    result = trained.result
    [entry] = result["trained"]
    store = ModelStore(desk / "artifacts")
    assert (entry["category"], entry["version"], entry["skipped"]) == (CATEGORY, 1, 0)
    assert store.active(CATEGORY) == 1
    detector = Detector.load(store.folder(CATEGORY, 1), "cpu")
    for name in ("image_threshold", "pixel_threshold", "false_reject_rate"):
        assert entry[name] == getattr(detector.operating_point, name)
    low, high = entry["false_reject_rate_interval"]
    assert 0 <= low < entry["false_reject_rate"] < high <= 1
    assert "true rate, 90 % interval" in " ".join(trained.errors.split())
    assert sorted(path.name for path in (desk / "runs" / CATEGORY).iterdir()) == [LOG_FILE]  # no checkpoint is left
    # What was asked for is what was trained.
    assert detector.training["fit"]["training"]["steps"] == 6
    assert detector.training["fit"]["training"]["batch_size"] == 4
    assert detector.training["fit"]["bank_size"] == 200
    assert detector.scan.members[0].encoder.feature_dimension == 8 * 2


def test_every_option_reaches_the_configuration(run: Run, data: Path, places: tuple[str, ...], tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "width": 1, "density-mode": "neighbours", "neighbours": 3, "bank-size": 50, "resize": "letterbox", "sigma": 3.5,
        "pretext": "rotation", "steps": 2, "batch-size": 3, "crop-patches": 2, "learning-rate": 0.02,
        "precision": "float32", "seed": 5, "calibration-fraction": 0.4, "group-pattern": r"(\d)\.png",
        "false-reject-rate": 0.3, "image-size": 72, "patch-size": 32, "stride": 4,
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    outcome = run("train", CATEGORY, "--data", data, *places, "--json", "--no-activate", *COMPUTE, *arguments)
    assert outcome.status == 0, outcome.errors
    assert outcome.result["trained"][0]["false_reject_rate"] == 0.3
    store = ModelStore(tmp_path / "models")
    assert store.active(CATEGORY) is None
    manifest = json.loads((store.folder(CATEGORY, 1) / "manifest.json").read_text())["configuration"]
    fit = manifest["training"]["fit"]
    values = manifest["detector"] | manifest["detector"]["geometry"] | fit | fit["training"]
    found = {
        **{name: values[name.replace("-", "_")] for name in options if name.replace("-", "_") in values},
        "width": manifest["detector"]["encoder"]["width"],
        "density-mode": manifest["detector"]["density"]["mode"],
        "neighbours": manifest["detector"]["density"]["neighbours"],
        "pretext": values["pretext"]["name"],
    }
    assert found == options


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "kernel_density", "mode": "neighbours", "neighbours": 5},
        {"name": "kernel_density", "mode": "compressed", "centres": 30, "reduce": "pca:9"},
        {"name": "kernel_density", "mode": "auto", "tolerance": 0.5, "reduce": "none"},
        {"name": "kernel_density", "mode": "sampled", "tolerance": 0.01},
        {"name": "one_class_svm", "kernel": "linear"},
        {"name": "gaussian_density"},
        {"name": "gaussian_mixture", "components": 3},
        {"name": "nearest_neighbours", "neighbours": 2},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_option_of_a_density_reaches_the_configuration(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path, settings: dict[str, Any]
) -> None:
    flags = {"name": "--density", "mode": "--density-mode"}
    options = [part for name, value in settings.items() for part in (flags.get(name, f"--{name}"), str(value))]
    outcome = run("train", CATEGORY, "--data", data, *places, "--json", *TINY, *options, "--seed", "3")
    assert outcome.status == 0, outcome.errors
    folder = ModelStore(tmp_path / "models").folder(CATEGORY, 1)
    manifest = json.loads((folder / "manifest.json").read_text())["configuration"]
    assert manifest["training"]["fit"]["training"]["seed"] == 3
    assert manifest["detector"]["density"].get("seed", 0) == 0  # its own is another
    reductions = {"pca:9": {"method": "pca", "dimension": 9}, "none": None}
    expected = {name: value for name, value in settings.items() if name != "reduce"}
    if "reduce" in settings:
        expected["reduction"] = reductions[settings["reduce"]]
    assert {name: manifest["detector"]["density"][name] for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ("--density parzen", ["parzen", "one_class_svm", "gaussian_mixture"]),
        ("--density gaussian_density --components 3", ["gaussian_density has no setting 'components'", "3"]),
        ("--density gaussian_mixture --kernel rbf", ["gaussian_mixture has no setting 'kernel'"]),
        ("--density one_class_svm --neighbours 2", ["one_class_svm has no setting 'neighbours'"]),
        ("--density nearest_neighbours --density-mode exact", ["nearest_neighbours has no setting 'mode'"]),
        ("--kernel linear", ["kernel_density has no setting 'kernel'"]),
        ("--neighbours 3", ["--neighbours", "auto", "--density-mode neighbours"]),
        ("--centres 3 --density-mode exact", ["--centres", "exact", "--density-mode auto or compressed"]),
        ("--tolerance 0", ["tolerance", "greater than 0"]),
        ("--tolerance 0.1 --density-mode compressed", ["--tolerance", "compressed", "--density-mode auto or sampled"]),
        ("--reduce pca", ["'pca' is not none, pca:DIMENSION"]),
        ("--density-mode compressed --reduce pca:2000", ["cannot be reduced to 2000", "fewer or none"]),
        ("--reduce svd:3", ["'svd:3' is not none, pca:DIMENSION"]),
        ("--density gaussian_mixture --components 500", ["at least 500 embeddings, not 200"]),
        ("--density nearest_neighbours --neighbours 500", ["at least 500 embeddings, not 200"]),
    ],
)
def test_what_a_density_has_no_use_for_is_refused_before_training(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path, options: str, mentions: list[str]
) -> None:
    outcome = run("train", CATEGORY, "--data", data, *places, "--json", *TINY, *options.split())
    outcome.assert_refused(2, *mentions)
    assert files_in(tmp_path) == []


def test_light_reaches_cutpaste(run: Run, data: Path, places: tuple[str, ...], tmp_path: Path) -> None:
    assert run("train", CATEGORY, "--data", data, *places, *TINY, "--light", "0.7").status == 0
    manifest = json.loads((ModelStore(tmp_path / "models").folder(CATEGORY, 1) / "manifest.json").read_text())
    pretext = manifest["configuration"]["training"]["fit"]["training"]["pretext"]
    assert (pretext["name"], pretext["light"]) == ("cutpaste", 0.7)


def test_a_size_names_the_width(run: Run, data: Path, places: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("--pretext", "none", "--size", "small", "--bank-size", "200", *COMPUTE)
    outcome = run("train", CATEGORY, "--data", data, *places, *arguments)
    assert outcome.status == 0, outcome.errors
    manifest = json.loads((ModelStore(tmp_path / "models").folder(CATEGORY, 1) / "manifest.json").read_text())
    assert manifest["configuration"]["detector"]["encoder"]["width"] == WIDTHS["small"]


def test_a_size_is_refused_for_a_network_that_has_none(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = ("--encoder", "resnet18_patch", "--size", "small", *COMPUTE)
    run("train", CATEGORY, "--data", data, *places, *arguments).assert_refused(2, "--size", "resnet18_patch")
    assert files_in(tmp_path) == []


def test_a_pretext_task_brings_its_own_settings_and_options_win(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path
) -> None:
    given = ("--width", "2", "--steps", "2", "--learning-rate", "0.02", "--bank-size", "200", *COMPUTE)
    outcome = run("train", CATEGORY, "--data", data, *places, "--pretext", "contrastive", *given)
    assert outcome.status == 0, outcome.errors
    manifest = json.loads((ModelStore(tmp_path / "models").folder(CATEGORY, 1) / "manifest.json").read_text())
    training = manifest["configuration"]["training"]["fit"]["training"]
    assert training["pretext"]["name"] == "contrastive"
    assert (training["batch_size"], training["crop_patches"]) == (32, 1)
    assert (training["steps"], training["learning_rate"]) == (2, 0.02)


def test_a_crop_of_many_windows_is_refused_for_a_contrastive_task(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = ("--pretext", "contrastive", "--crop-patches", "2", *COMPUTE)
    run("train", CATEGORY, "--data", data, *places, *arguments).assert_refused(2, "crop_patches", "contrastive", "1")
    assert files_in(tmp_path) == []


def test_without_a_pretext_task_nothing_is_trained(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = ("--pretext", "none", "--width", "2", "--bank-size", "200", *COMPUTE)
    outcome = run("train", CATEGORY, "--data", data, *places, *arguments)
    assert outcome.status == 0, outcome.errors
    assert f"{CATEGORY}: stage 1: none\n" in outcome.errors
    assert ModelStore(tmp_path / "models").active(CATEGORY) == 1


def test_a_bar_is_drawn_from_the_first_report_on(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("cli.progress.console", Console(file=screen, force_terminal=True, width=120))
    with training_bar():
        pass
    assert "training" not in screen.getvalue()
    with training_bar() as bar:
        bar(Progress(step=1, steps=7, loss=0.5, accuracy=0.5, images_per_second=1, seconds_left=6))
    assert "training" in screen.getvalue()
    assert "1/7" in screen.getvalue()


def test_a_log_file_gets_a_line_of_what_is_counted_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 10.0, 40.0, 41.0, 50.0])
    monkeypatch.setattr("cli.progress.time", SimpleNamespace(monotonic=lambda: next(times)))
    screen = io.StringIO()
    monkeypatch.setattr("cli.progress.console", Console(file=screen, width=120))
    with training_bar() as bar:
        for done in (1, 2, 3):
            bar.count("embedding images, pass 1", done, 9)
    assert screen.getvalue().split("\n")[0] == "embedding images, pass 1: 2 of 9"
    assert screen.getvalue().count(" of 9") == 1


def test_train_all(run: Run, data: Path, places: tuple[str, ...], tmp_path: Path) -> None:
    both = tmp_path / "data"
    for name in ("cap", "lid"):
        shutil.copytree(data / CATEGORY, both / name)
    outcome = run("train", "--all", "--data", both, *places, "--json", *TINY)
    assert outcome.status == 0, outcome.errors
    assert [(entry["category"], entry["version"]) for entry in outcome.result["trained"]] == [("cap", 1), ("lid", 1)]
    assert ModelStore(tmp_path / "models").categories() == ["cap", "lid"]
    again = run("train", "lid", "--data", both, *places, "--json", *TINY)
    assert again.result["trained"][0]["version"] == 2
    for name in ("image_threshold", "pixel_threshold"):  # the same seed
        assert again.result["trained"][0][name] == outcome.result["trained"][1][name]


@pytest.fixture
def several(data: Path, tmp_path: Path) -> Path:
    """Categories a, b, c and d; b holds a broken file."""
    for name in "abcd":
        shutil.copytree(data / CATEGORY, tmp_path / "data" / name)
    (tmp_path / "data" / "b" / "train" / "good" / "zz.png").write_bytes(b"torn")
    return tmp_path / "data"


def test_a_category_that_fails_does_not_stop_the_others(
    run: Run, several: Path, places: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Operations.publish

    def break_in_c(operations: Operations, detector: Detector, *, activate: bool) -> int:
        if detector.category == "c":
            raise ZeroDivisionError("a defect of the program")
        return publish(operations, detector, activate=activate)

    arguments = ("train", "--all", "--data", str(several), *places, "--json", *TINY)
    with monkeypatch.context() as patch:
        patch.setattr(Operations, "publish", break_in_c)
        outcome = run(*arguments)
    assert outcome.status == 1
    assert [entry["category"] for entry in outcome.result["trained"]] == ["a", "d"]
    assert [entry["category"] for entry in outcome.result["failed"]] == ["b", "c"]
    assert "zz.png" in outcome.result["failed"][0]["error"]
    assert outcome.result["failed"][1]["error"] == "ZeroDivisionError: a defect of the program"
    assert outcome.result["error"] == "2 of 4 categories failed: b, c"
    assert "Traceback" in outcome.errors  # of the defect
    assert outcome.errors.splitlines()[-1] == "plumbline: 2 of 4 categories failed: b, c"
    assert ModelStore(tmp_path / "models").categories() == ["a", "d"]

    again = run(*arguments, "--restart")
    assert again.status == 2  # only an input is wrong
    assert again.result["error"] == "1 of 4 categories failed: b"
    assert ModelStore(tmp_path / "models").versions("d") == [1, 2]


def test_ctrl_c_stops_all(run: Run, several: Path, places: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def press(bar: TrainingBar, report: Progress) -> None:
        seen.append(report)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingBar, "__call__", press)
    outcome = run("train", "--all", "--data", several, *places, "--json", *TINY)
    assert outcome.status == 130
    assert "resume" in outcome.result["error"]
    assert len(seen) == 1


def test_all_go_on_with_those_that_are_left(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        shutil.copytree(data / CATEGORY, tmp_path / "data" / name)
    arguments = ("train", "--all", "--data", str(tmp_path / "data"), *places, "--json", *TINY)
    reports = []

    def press_in_b(bar: TrainingBar, report: Progress) -> None:
        reports.append(report)
        if len(reports) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingBar, "__call__", press_in_b)
        stopped = run(*arguments)
    assert stopped.status == 130
    assert [entry["category"] for entry in stopped.result["trained"]] == ["a"]
    again = run(*arguments, "--resume")
    assert again.status == 0, again.errors
    assert again.result["passed_over"] == [{"category": "a", "version": 1}]
    assert "a: passed over: version 1" in again.errors
    assert [(entry["category"], entry["version"]) for entry in again.result["trained"]] == [("b", 1), ("c", 1)]
    image = tmp_path / "data" / "c" / "train" / "good" / "000.png"
    image.unlink()
    assert [entry["category"] for entry in run(*arguments, "--resume").result["trained"]] == ["c"]
    assert len(run(*arguments, "--resume", "--seed", "1").result["trained"]) == 3


def test_a_broken_file_stops_training_or_is_skipped_and_counted(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(data / CATEGORY, tmp_path / "data" / "cap")
    broken = tmp_path / "data" / "cap" / "train" / "good" / "zz.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n torn")
    arguments = ("train", "cap", "--data", str(tmp_path / "data"), *places, "--json", *TINY)
    run(*arguments).assert_refused(2, str(broken), "--skip-broken")
    outcome = run(*arguments, "--skip-broken")
    assert outcome.status == 0, outcome.errors
    assert outcome.result["trained"][0]["skipped"] == 1
    assert f"skipped {broken}" in outcome.errors.replace("\n", "")


def test_train_from_a_plain_folder_under_any_name(run: Run, places: tuple[str, ...], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(9):
        image = random.integers(0, 256, (50, 70), dtype=np.uint8)  # grey
        (tmp_path / "shots").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "shots" / f"{index}.bmp")
    outcome = run("train", "bolt", "--data", tmp_path / "shots", *places, "--json", *TINY)
    assert outcome.status == 0, outcome.errors
    assert ModelStore(tmp_path / "models").categories() == ["bolt"]


# --- where it writes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--models", "--runs"])
def test_a_folder_that_cannot_be_written_to_is_told_before_training(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    arguments = ("train", CATEGORY, "--data", str(data), *places, "--json", *TINY)
    (tmp_path / "file").touch()
    run(*arguments, option, tmp_path / "file" / "in").assert_refused(2, option, f"{tmp_path / 'file'} is a file")
    (tmp_path / "full").mkdir()
    # Of root, which tests may run as, every folder can be written to.
    monkeypatch.setattr("cli.folders.os.access", lambda path, mode: path != tmp_path / "full")
    run(*arguments, option, tmp_path / "full").assert_refused(2, option, "may not be written to")
    assert files_in(tmp_path) == [tmp_path / "file"]


def test_one_process_at_a_time_trains_a_category(
    data: Path, places: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor may another throw its run away, or take it for one that was interrupted."""
    arguments = ("train", CATEGORY, "--data", str(data), *places, "--json", *TINY)
    seen: list[Outcome] = []

    def meanwhile(bar: TrainingBar, report: Progress) -> None:
        if not seen:
            seen.extend(run_main(capsys, *arguments, *again) for again in ((), ("--resume",), ("--restart",)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBar, "__call__", meanwhile)
        outcome = run_main(capsys, *arguments)
    assert outcome.status == 0, outcome.errors
    for other in seen:
        other.assert_refused(2, f"another process trains {CATEGORY} in {tmp_path / 'runs'}", "other --runs")
    assert outcome.result["trained"][0]["version"] == 1


# --- interrupted ------------------------------------------------------------------------------------------------------


def encoder_bytes(models: Path, version: int = 1) -> bytes:
    return (ModelStore(models).folder(CATEGORY, version) / "encoder.safetensors").read_bytes()


def test_ctrl_c_leaves_a_run_that_goes_on_exactly(
    run: Run, data: Path, models: Path, places: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", CATEGORY, "--data", str(data), *places, *TINY)
    checkpoint = tmp_path / "runs" / CATEGORY / CHECKPOINT_FILE

    def press(bar: TrainingBar, report: Progress) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingBar, "__call__", press)
        run(*arguments, "--json").assert_refused(130, "resume")
    assert checkpoint.exists()
    assert not (tmp_path / "models").exists()

    run(*arguments, "--json").assert_refused(2, "--resume", "--restart", str(checkpoint.parent))
    run(*arguments, "--resume", "--learning-rate", "0.5").assert_refused(2, "other settings")
    assert checkpoint.exists()
    outcome = run(*arguments, "--resume", "--json")
    assert outcome.status == 0, outcome.errors
    assert encoder_bytes(tmp_path / "models") == encoder_bytes(models)  # of the run that nothing interrupted
    assert not checkpoint.exists()


def test_a_signal_to_the_installed_program(run: Run, data: Path, places: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("train", CATEGORY, "--data", str(data), *places, *TINY)
    folder = tmp_path / "runs" / CATEGORY
    with subprocess.Popen(
        [PROGRAM, *arguments, "--steps", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 300
        log = folder / LOG_FILE
        while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=300)
    Outcome(process.returncode, output, errors).assert_refused(130, "of 1000000", "resume")
    assert (folder / CHECKPOINT_FILE).exists()
    outcome = run(*arguments, "--restart", "--json")
    assert outcome.status == 0, outcome.errors
    assert json.loads((folder / LOG_FILE).read_text().splitlines()[0])["steps"] == 6
    assert not (folder / CHECKPOINT_FILE).exists()


def test_resume_where_nothing_was_interrupted_begins(run: Run, data: Path, places: tuple[str, ...]) -> None:
    assert run("train", CATEGORY, "--data", data, *places, *TINY, "--resume").status == 0


def test_a_loss_that_blows_up_fails_and_publishes_nothing(
    run: Run, data: Path, places: tuple[str, ...], tmp_path: Path
) -> None:
    run(
        "train", CATEGORY, "--data", data, *places, *TINY, "--learning-rate", "1e38", "--precision", "float32"
    ).assert_refused(1, "lower the learning rate")  # fmt: skip
    assert not (tmp_path / "models").exists()
