"""What holds for every verb: arguments, exit status, sentences, JSON, and what it costs to start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, ValidationError

from benchmarks.kde import TooFew
from cli.errors import FAILED, INTERRUPTED, WRONG_INPUT, UsageError, exit_status, sentence
from cli.main import VERBS
from models.artifact import ArtifactError
from models.device import DeviceError
from models.encoders.pretrained_patch import WeightsError
from models.export import ExportError
from models.images import UnreadableImage
from models.store_errors import UnknownCategory
from service.settings import SettingsError
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE, TINY, files_in, run_program
from training.data import DataError
from training.synthetic import SyntheticError
from training.trainer import TrainingError, TrainingInterrupted, TrainingSettingsError

ROOT = Path(__file__).resolve().parents[2]
MISSING = "/nowhere/at/all"


def test_help_names_every_verb(run: Run) -> None:
    outcome = run("--help")
    assert outcome.status == 0
    for verb, line in VERBS.items():
        assert verb in outcome.output
        assert line in " ".join(outcome.output.split())


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"models", "reproduce", "data", "keys"}))  # those have sub-verbs
def test_every_verb_takes_json_and_a_device(run: Run, verb: str) -> None:
    outcome = run(verb, "--help")
    assert outcome.status == 0
    assert "--json" in outcome.output
    assert ("--device" in outcome.output) == (verb != "export")  # which computes on the CPU, as its engines do


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        ((), ("VERB",)),
        (("polish",), ("polish", "train", "evaluate", "score", "explain", "serve", "models", "benchmark", "demo")),
        (("--json",), ("VERB",)),
        (("train", CATEGORY), ("--data",)),
        (("train", CATEGORY, "--data", "{data}", "--steps", "0"), ("--steps", "0")),
        (("train", CATEGORY, "--data", "{data}", "--steps", "many"), ("--steps", "many")),
        (("train", CATEGORY, "--data", "{data}", "--device", "tpu"), ("--device", "tpu", "auto", "cpu", "cuda")),
        (("train", CATEGORY, "--data", "{data}", "--encoder", "vgg"), ("vgg", "dense_patch", "resnet18_patch")),
        (("train", CATEGORY, "--data", "{data}", "--resume", "--restart"), ("--resume", "--restart")),
        (("train", CATEGORY, "--data", "{data}", "--epochs", "3"), ("--epochs",)),
        (("evaluate", CATEGORY, "--data", "{data}"), ("--out",)),
        (("score", CATEGORY), ("IMAGE",)),
        (("models",), ("ACTION",)),
        (("models", "paint"), ("paint", "list", "show", "activate", "verify")),
        (("models", "activate", CATEGORY), ("VERSION",)),
        (("models", "activate", CATEGORY, "-1"), ("-1",)),
        (("models", "show", CATEGORY, "one"), ("one",)),
        (("benchmark", "sprint"), ("sprint", "scan")),
        (("demo", "--steps", "-5"), ("--steps", "'-5' is not a positive whole number")),
        (("demo", "--steps", "1e3"), ("--steps", "'1e3' is not a positive whole number")),
        (("export", CATEGORY, "--format", "onnx", "--out", "x", "--batch", "all"), ("'all' is not a", "nor dynamic")),
        (("train", CATEGORY, "--data", "{data}", "--size", "huge"), ("huge", "small", "base", "large")),
        (("train", CATEGORY, "--data", "{data}", "--size", "small", "--width", "8"), ("--size", "--width")),
    ],
    ids=lambda value: " ".join(value),
)
def test_arguments_that_cannot_be_read(
    run: Run, data: Path, arguments: tuple[str, ...], mentions: tuple[str, ...]
) -> None:
    run(*(argument.format(data=data) for argument in arguments)).assert_refused(2, *mentions)


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("train", "--data", "{data}"), ("CATEGORY", "--all")),
        (("train", CATEGORY, "--all", "--data", "{data}"), ("CATEGORY", "--all")),
        (("train", "lid", "--data", "{data}"), ("'lid'", CATEGORY)),
        (("train", "../lid", "--data", "{data}"), ("'../lid'", "a-z")),
        (("train", CATEGORY, "--data", MISSING), (MISSING, "does not exist")),
        (("train", "--all", "--data", MISSING), (MISSING, "does not exist")),
        (("train", CATEGORY, "--data", "{empty}"), ("{empty}", "no category")),
        (("train", CATEGORY, "--data", "{file}"), ("{file}", "is a file")),
        (("train", CATEGORY, "--data", "{data}", "--seed", "-1"), ("seed", "-1")),
        (("train", CATEGORY, "--data", "{data}", "--batch-size", "1"), ("batch_size", "1")),
        (("train", CATEGORY, "--data", "{data}", "--learning-rate", "0"), ("learning_rate", "0")),
        (("train", CATEGORY, "--data", "{data}", "--learning-rate", "inf"), ("learning_rate", "inf")),
        (("train", CATEGORY, "--data", "{data}", "--calibration-fraction", "1.5"), ("calibration_fraction", "1.5")),
        (("train", CATEGORY, "--data", "{data}", "--false-reject-rate", "0"), ("false_reject_rate", "0")),
        (("train", CATEGORY, "--data", "{data}", "--false-reject-rate", "0.01"), ("0.01", "calibration images")),
        (("train", CATEGORY, "--data", "{data}", "--group-pattern", "("), ("group pattern", "'('")),
        (("train", CATEGORY, "--data", "{data}", "--sigma", "1"), ("sigma", "1")),
        (("train", CATEGORY, "--data", "{data}", "--sigma", "inf"), ("sigma", "inf")),
        (("train", CATEGORY, "--data", "{data}", "--encoder", "resnet18_patch", "--width", "8"), ("width", "8")),
        (("train", CATEGORY, "--data", "{data}", "--pretext", "rotation", "--light", "0.5"), ("light", "0.5")),
        (("train", CATEGORY, "--data", "{data}", "--light", "2"), ("light", "2")),
        (("train", CATEGORY, "--data", "{data}", "--pretext", "jigsaw"), ("'jigsaw'", "cutpaste", "none", "rotnet")),
        (("train", CATEGORY, "--data", "{data}", "--encoder", "vgg"), ("'vgg'", "dense_patch")),
        (("train", CATEGORY, "--data", "{data}", "--density", "kde"), ("'kde'", "kernel_density")),
        (
            ("train", CATEGORY, "--data", "{data}", "--pretext", "rotation", "--set", "training.pretext.head_depth=0"),
            ("0", "rotnet"),
        ),
        (("train", CATEGORY, "--data", "{data}", "--pretext", "none"), ("--steps", "none")),
        (("train", CATEGORY, "--data", "{data}", "--density", "rotation_classifier"), ("--bank-size",)),
        (
            ("train", CATEGORY, "--data", "{data}", "--set", "detector.density.score=upright"),
            ("detector.density", "'score'", "neighbours"),
        ),
        (("train", CATEGORY, "--data", "{data}", "--stride", "8"), ("stride 4, not 32 at stride 8", "another encoder")),
        (
            ("train", CATEGORY, "--data", "{data}", "--set", "detector.inference.engine=cuda_graph"),
            ("cuda_graph", "needs a CUDA GPU"),
        ),
        (("train", CATEGORY, "--data", "{data}", "--crop-patches", "9"), ("crop_patches", "9", "at most 8")),
        (("evaluate", "lid", "--data", "{data}", "--models", "{models}", "--out", "{empty}"), ("'lid'", CATEGORY)),
        (("evaluate", CATEGORY, "--data", "{data}", "--models", MISSING, "--out", "{empty}"), (MISSING,)),
        (("evaluate", CATEGORY, "--data", MISSING, "--models", "{models}", "--out", "{empty}"), (MISSING,)),
        (
            ("evaluate", CATEGORY, "--data", "{data}", "--models", "{models}", "--out", "{file}"),
            ("--out {file}", "is a file"),
        ),
        (("score", CATEGORY, "{image}", "--models", "{models}", "--out", "{file}"), ("--out {file}", "is a file")),
        (("explain", CATEGORY, "{image}", "--models", "{models}", "--out", "{file}"), ("--out {file}", "is a file")),
        (("score", "lid", "{image}", "--models", "{models}"), ("'lid'", CATEGORY)),
        (("score", CATEGORY, "{image}", "--models", MISSING), (MISSING,)),
        (("score", CATEGORY, "{file}", "--models", "{models}"), ("{file}", "not an image")),
        (("score", CATEGORY, MISSING, "--models", "{models}"), (MISSING,)),
        (("score", CATEGORY, "{image}", "--models", "{models}", "--version-number", "7"), ("version 7", "1")),
        (("models", "list", "--models", MISSING), (MISSING,)),
        (("models", "show", "lid", "--models", "{models}"), ("'lid'", CATEGORY)),
        (("models", "show", CATEGORY, "7", "--models", "{models}"), ("version 7",)),
        (("models", "activate", CATEGORY, "7", "--models", "{models}"), ("version 7",)),
        (("models", "verify", "../lid", "--models", "{models}"), ("'../lid'",)),
        (("serve", "--models", MISSING), (MISSING,)),
        (("serve", "--models", "{models}", "--port", "99999"), ("99999",)),
        (("serve", "--models", "{models}", "--device", "tpu"), ("tpu", "'auto'")),
        (("demo", "--product", "teapot", "--out", "{empty}"), ("'teapot'", "washer")),
    ],
    ids=lambda value: " ".join(value),
)
def test_arguments_that_name_what_is_not_there(
    run: Run, data: Path, models: Path, tmp_path: Path, arguments: tuple[str, ...], mentions: tuple[str, ...]
) -> None:
    places = {
        "data": data,
        "models": models,
        "empty": tmp_path / "empty",
        "file": tmp_path / "notes.png",
        "image": next((data / CATEGORY / "test" / "good").iterdir()),
    }
    places["empty"].mkdir()
    places["file"].write_text("not an image")
    arguments = tuple(argument.format(**places) for argument in arguments)
    tiny = (*TINY, "--runs", str(tmp_path / "runs")) if arguments[0] == "train" else ()
    given = arguments[1:] if tiny else ()
    arguments = (arguments[0], *tiny, *given) if tiny else arguments  # what is given last, counts
    run(*arguments).assert_refused(2, *(mention.format(**places) for mention in mentions))
    assert files_in(tmp_path / "runs") == []


@pytest.mark.parametrize(
    "arguments", [("train", "lid", "--data", MISSING), ("polish",), ("models", "list", "--models", MISSING)]
)
def test_the_installed_program_ends_with_the_same_status_and_sentence(arguments: tuple[str, ...]) -> None:
    run_program(*arguments).assert_refused(2)


def test_cuda_where_there_is_none_is_refused(
    run: Run, data: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    image = next((data / CATEGORY / "test" / "good").iterdir())
    for arguments in (
        ("train", CATEGORY, "--data", data, "--runs", tmp_path / "runs"),
        ("evaluate", CATEGORY, "--data", data, "--models", models, "--out", tmp_path / "report"),
        ("score", CATEGORY, image, "--models", models),
        ("benchmark", "scan"),
        ("serve", "--models", models, "--port", "0"),
    ):
        run(*arguments, "--device", "cuda").assert_refused(2, "no CUDA GPU")


# --- what a failure means ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), WRONG_INPUT),
        (UnreadableImage("x"), WRONG_INPUT),
        (UnknownCategory("lid", ["cap"]), WRONG_INPUT),
        (DataError("x"), WRONG_INPUT),
        (SettingsError("x"), WRONG_INPUT),
        (DeviceError("x"), WRONG_INPUT),
        (SyntheticError("x"), WRONG_INPUT),
        (WeightsError("x"), WRONG_INPUT),
        (TooFew("x"), WRONG_INPUT),
        (ArtifactError("x"), FAILED),
        (ExportError("x"), FAILED),
        (TrainingError("x"), FAILED),
        (TrainingSettingsError("x"), WRONG_INPUT),
        (PermissionError(13, "Permission denied", "/x"), FAILED),
        (TrainingInterrupted("x"), INTERRUPTED),
        (KeyboardInterrupt(), INTERRUPTED),
        (ModuleNotFoundError("No module named 'training'", name="training.fit"), WRONG_INPUT),
        (ModuleNotFoundError("No module named 'benchmarks'", name="benchmarks"), WRONG_INPUT),
        (ModuleNotFoundError("No module named 'trainings'", name="trainings"), None),
        (ValueError("a defect of the program"), None),
        (RuntimeError("a defect of the program"), None),
        (KeyError("a defect of the program"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_status(error: BaseException, status: int | None) -> None:
    assert exit_status(error) == status
    assert sentence(error)


def test_what_the_system_refuses_is_told_with_its_file_and_without_a_number() -> None:
    assert sentence(PermissionError(13, "Permission denied", "/x/y")) == "/x/y: Permission denied"
    assert sentence(OSError("the archive is another")) == "the archive is another"
    assert sentence(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"


def test_a_serving_image_says_what_it_lacks() -> None:
    line = sentence(ModuleNotFoundError("No module named 'training'", name="training"))
    assert "serving image" in line
    assert "full installation" in line


def test_a_wrong_value_is_named_in_one_line() -> None:
    class Inner(BaseModel):
        width: int

    class Outer(BaseModel):
        inner: Inner
        name: str

    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"width": "wide"}, "name": 3})
    line = sentence(caught.value)
    assert "\n" not in line
    assert "inner.width is 'wide': " in line
    assert "; name is 3: " in line


def test_what_would_follow_from_a_wrong_value_is_not_told_as_another() -> None:
    class Settings(BaseModel):
        width: int
        depth: int = Field(default_factory=lambda data: data["width"])

    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"width": "wide"})
    assert caught.value.error_count() == 2
    assert "depth" not in sentence(caught.value)


def test_a_defect_of_the_program_keeps_its_traceback(run: Run, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cli.verbs.models._list", broken)
    with pytest.raises(ZeroDivisionError):
        run("models", "list", "--models", models)


@pytest.mark.parametrize("arguments", [("models", "list", "--models", MISSING), ("score", CATEGORY, MISSING)])
def test_with_json_a_failure_is_an_object_too(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments, "--json")
    assert outcome.status == WRONG_INPUT
    assert outcome.errors.splitlines()[-1] == f"plumbline: {outcome.result['error']}"
    assert run(*arguments).output == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_both_signals_end_a_verb_with_its_object(
    run: Run, models: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("cli.verbs.models._list", lambda options: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell has it ignored
    try:
        outcome = run("models", "list", "--models", models, "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    outcome.assert_refused(INTERRUPTED, "interrupted")
    assert outcome.result == {"error": "interrupted"}
    assert signal.getsignal(signal.SIGTERM) is handler


# --- what a verb costs to start ---------------------------------------------------------------------------------------

LOADED = """
import json, sys
from cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print(json.dumps([status, sorted({name.split(".")[0] for name in sys.modules})]))
"""
HEAVY = {"torch", "torchvision", "faiss", "kornia", "matplotlib", "sklearn", "scipy"}


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (("models", "list", "--models", "{models}", "--json"), HEAVY | {"training", "service", "fastapi"}),
        (("models", "verify", CATEGORY, "--models", "{models}", "--json"), HEAVY | {"training", "service", "fastapi"}),
        (("serve", "--help"), HEAVY | {"training", "benchmarks"}),
        (("train", "--help"), HEAVY | {"training", "service"}),
        (("score", CATEGORY, "{image}", "--models", "{models}", *COMPUTE), {"training", "kornia", "matplotlib"}),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_a_verb_imports_only_what_it_needs(
    data: Path, models: Path, arguments: tuple[str, ...], absent: set[str]
) -> None:
    image = next((data / CATEGORY / "test" / "good").iterdir())
    filled = [argument.format(models=models, image=image) for argument in arguments]
    result = subprocess.run(
        [sys.executable, "-c", LOADED, *filled], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    status, loaded = json.loads(result.stdout.splitlines()[-1])
    assert status == 0
    assert absent & set(loaded) == set()
