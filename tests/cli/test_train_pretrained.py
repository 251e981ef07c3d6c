"""``plumbline train --encoder pretrained_patch``: with ImageNet's weights, and where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.detector import Detector
from models.encoders import PretrainedPatch
from models.scan import Scan
from models.store import ModelStore
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE

FILE = "mobilenet_v2-b0353104.pth"
WEIGHTS = Path(torch.hub.get_dir()) / "checkpoints" / FILE
QUICK = ("--encoder", "pretrained_patch", "--steps", "2", "--batch-size", "4", "--bank-size", "200", *COMPUTE)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no {WEIGHTS}; set TORCH_HOME")
def test_an_artifact_has_its_weights_itself(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    places = ("--models", models, "--runs", tmp_path / "runs")
    outcome = run("train", CATEGORY, "--data", data, *places, *QUICK, "--backbone", "mobilenet_v2", "--json")
    assert outcome.status == 0, outcome.errors
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    scan = Detector.load(ModelStore(models).folder(CATEGORY, 1), "cpu").scan
    assert isinstance(scan, Scan)
    assert isinstance(scan.encoder, PretrainedPatch)
    state = scan.encoder.backbone.state_dict()
    # The frozen part is ImageNet's to the bit; the rest was trained.
    imagenet = torch.load(WEIGHTS, weights_only=True)
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, imagenet[name])}
    assert changed
    assert not any(name.startswith(f"features.{number}.") for number in range(7) for name in changed)
    image = next((data / CATEGORY / "test" / "good").iterdir())
    outcome = run("score", CATEGORY, image, "--models", models, *COMPUTE, "--json")
    assert outcome.status == 0, outcome.errors


def test_weights_that_cannot_be_had_stop_training_before_it_begins(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    outcome = run("train", CATEGORY, "--data", data, "--runs", tmp_path / "runs", *QUICK, "--json")
    assert outcome.status == 2
    for mention in (str(tmp_path / "cache" / "hub" / "checkpoints" / FILE), "https://", "TORCH_HOME"):
        assert mention in outcome.result["error"]
    assert not list((tmp_path / "runs").rglob("*.pt"))


def test_a_backbone_belongs_to_the_pretrained_encoder(run: Run, data: Path) -> None:
    run("train", CATEGORY, "--data", data, "--backbone", "resnet18").assert_refused(2, "backbone", "resnet18")
    run("train", CATEGORY, "--data", data, "--encoder", "pretrained_patch", "--backbone", "vgg16").assert_refused(
        2, "vgg16", "mobilenet_v2"
    )
