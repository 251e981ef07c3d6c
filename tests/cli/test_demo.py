"""``plumbline demo``: a short one for how it goes, the one that is claimed, and one that learned nothing."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.verbs import demo
from models.encoders import Encoder
from models.images import read_image
from models.store import ModelStore
from tests.cli.conftest import Run
from tests.cli.support import COMPUTE, Outcome, run_program
from training.evaluation import evaluate
from training.synthetic import PRODUCTS
from training.trainer import Trainer

CLAIMED_AUROC = 0.95  # image and pixel
UNTRAINED_AUROC = 0.80  # image; above it the product would be too easy to prove anything
SHORT = ("--steps", "2", *COMPUTE)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images than the demonstration has."""
    for name, count in (("TRAIN_IMAGES", 8), ("TEST_GOOD_IMAGES", 2), ("TEST_DEFECTS", 1)):
        monkeypatch.setattr(demo, name, count)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.usefixtures("small")
def test_a_short_demonstration(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, seen = free_port(), []

    def look() -> None:  # instead of waiting for Ctrl-C
        seen.append(httpx.get(f"http://127.0.0.1:{port}/readyz").status_code)
        seen.append(httpx.get(f"http://127.0.0.1:{port}/docs").status_code)

    monkeypatch.setattr(demo, "_wait_for_interrupt", look)
    out = tmp_path / "demo"
    outcome = run("demo", "--out", out, "--port", str(port), "--json", *SHORT)
    assert outcome.status == 0, outcome.errors
    assert seen == [200, 200]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/readyz")

    result = outcome.result
    assert set(result["verdicts"]) == {"good", "defective"}
    metrics = json.loads((out / "report" / "metrics.json").read_text())
    assert {name: metrics[name] for name in ("image_auroc", "pixel_auroc")} == {
        name: result[name] for name in ("image_auroc", "pixel_auroc")
    }
    [part] = (out / "data" / demo.PRODUCT / "test" / demo.DEFECT).iterdir()
    assert read_image(Path(result["heatmap"])).shape == read_image(part).shape
    assert f"http://127.0.0.1:{port}/docs" in outcome.output
    assert ModelStore(out / "models").active(demo.PRODUCT) == 1

    # Made again in its own folder, and in no other.
    again = run("demo", "--no-serve", "--out", out, "--port", "0", "--json", *SHORT)
    assert again.status == 0, again.errors
    assert len(seen) == 2
    assert {**again.result, "seconds": 0} == {**result, "seconds": 0}


@pytest.mark.parametrize("name", ["data/mine.png", "models/cap/versions/1/manifest.json", "notes.txt"])
def test_a_folder_that_is_somebodys_is_left_alone(run: Run, tmp_path: Path, name: str) -> None:
    precious = tmp_path / name
    precious.parent.mkdir(parents=True, exist_ok=True)
    precious.write_text("precious")
    run("demo", "--no-serve", "--out", tmp_path, "--port", "0", *SHORT).assert_refused(2, str(tmp_path), "--out")
    assert precious.read_text() == "precious"
    run("demo", "--no-serve", "--out", precious, "--port", "0", *SHORT).assert_refused(2, str(precious))


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A file of the model that an earlier demonstration left."""
    file = tmp_path / "demo" / "models" / "fabric" / "manifest.json"
    file.parent.mkdir(parents=True)
    file.write_text("earlier")
    (tmp_path / "demo" / demo.MARKER).touch()
    return file


@pytest.mark.parametrize(
    ("wrong", "mentions"),
    [
        (("--port", "70000"), ("70000",)),
        (("--port", "-1"), ("-1",)),
        (("--product", "teapot"), ("'teapot'", *PRODUCTS)),
    ],
)
def test_what_cannot_be_is_refused_before_an_earlier_demonstration_is_deleted(
    run: Run, tmp_path: Path, earlier: Path, wrong: tuple[str, ...], mentions: tuple[str, ...]
) -> None:
    run("demo", "--no-serve", "--out", tmp_path / "demo", *SHORT, *wrong).assert_refused(2, *mentions)
    assert earlier.read_text() == "earlier"
    assert not (tmp_path / "demo" / "data").exists()


def test_so_is_a_port_in_use(run: Run, tmp_path: Path, earlier: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        run("demo", "--no-serve", "--out", tmp_path / "demo", *SHORT, "--port", port).assert_refused(2, port, "--port")
    assert earlier.read_text() == "earlier"


@pytest.mark.usefixtures("small")
def test_a_port_that_is_taken_meanwhile(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with ExitStack() as others:

        def evaluate_while_others_work(*arguments: Any, **options: Any) -> dict[str, Any]:
            others.enter_context(socket.create_server(("127.0.0.1", port)))
            return evaluate(*arguments, **options)

        monkeypatch.setattr("training.evaluation.evaluate", evaluate_while_others_work)
        outcome = run("demo", "--no-serve", "--out", tmp_path / "demo", *SHORT, "--port", str(port))
    assert outcome.status == 2
    assert outcome.errors.splitlines()[-1].startswith(f"plumbline: cannot listen on '127.0.0.1' port {port}")
    assert ModelStore(tmp_path / "demo" / "models").active(demo.PRODUCT) == 1


# --- what is claimed --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """``plumbline demo --no-serve`` with all that it has by default."""
    out = tmp_path_factory.mktemp("claimed") / "demo"
    return run_program("demo", "--no-serve", "--out", out, "--port", "0", "--json", seconds=1800)


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_the_demonstration_learns_its_product(claimed: Outcome) -> None:
    assert claimed.status == 0, claimed.errors
    result: dict[str, Any] = claimed.result
    assert result["image_auroc"] >= CLAIMED_AUROC
    assert result["pixel_auroc"] >= CLAIMED_AUROC
    assert result["verdicts"] == {"good": "good", "defective": "defective"}


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_the_same_with_untrained_weights_does_not(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def untrained(trainer: Trainer, report: object = None) -> Encoder:
        return trainer.encoder.eval()

    monkeypatch.setattr(Trainer, "run", untrained)
    outcome = run("demo", "--no-serve", "--out", tmp_path / "demo", "--port", "0", "--json", *COMPUTE)
    assert outcome.status == 0, outcome.errors
    assert outcome.result["image_auroc"] < UNTRAINED_AUROC
