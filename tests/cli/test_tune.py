from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import tuning
from models.detector import Detector
from models.inference import FLOAT32, InferencePlan
from models.operation import Operation, Operations, revised
from models.region_of_interest import RegionOfInterest
from models.scan import Ensemble, Look, Scan, by_plan
from models.store import ModelStore
from models.timing import Timing
from models.tuning import Measured, fastest
from tests.cli.conftest import Run
from tests.cli.support import COMPUTE, run_main
from tests.models.detectors import SMALL, make, part

BFLOAT16 = InferencePlan(precision="bfloat16")
Tune = Callable[..., dict[str, Any]]
COMPILED = InferencePlan(precision="bfloat16", engine="compile")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A category whose one version computes in float32."""
    store = ModelStore(tmp_path / "models")
    store.publish("plate", make(SMALL).save)
    return store


@pytest.fixture
def tune(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> Tune:
    """Runs the verb; what it gives."""

    def run(*arguments: str) -> dict[str, Any]:
        common = ("--models", store.root, *COMPUTE, "--rounds", "2", "--json")
        outcome = run_main(capsys, "tune", "plate", *common, *arguments)
        assert outcome.status == 0, outcome.errors
        return outcome.result

    return run


def only_faster(monkeypatch: pytest.MonkeyPatch, plan: InferencePlan) -> None:
    """What is fast does not depend on the machine that tests."""
    monkeypatch.setattr(tuning, "computes_bfloat16", lambda device: True)
    monkeypatch.setattr(tuning, "fastest", lambda measured, own, batch: plan)


def test_the_fastest_plan_becomes_a_version_calibrated_by_itself(
    store: ModelStore, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_faster(monkeypatch, BFLOAT16)
    result = tune()
    assert (result["of_version"], result["version"], store.active("plate")) == (1, 2, 1)
    before, after = (Detector.load(store.folder("plate", version), "cpu") for version in (1, 2))
    assert (before.scan.configuration.inference, after.scan.configuration.inference) == (FLOAT32, BFLOAT16)
    assert result["image_threshold"] == after.operating_point.image_threshold != before.operating_point.image_threshold
    assert after.operating_point.false_reject_rate == before.operating_point.false_reject_rate
    # Calibrated as it scores: the calibration images have the image scores that it says they have.
    inputs = after.calibration_set.inputs
    scores = [after.scan.look(one[None]).score_maps.max() for one in inputs]
    np.testing.assert_allclose(after.calibration.image_scores, scores, atol=1e-6)
    kept = after.training["tuning"]
    assert kept["of_version"] == 1
    assert [line["precision"] for line in kept["measured"]] == ["float32", "bfloat16"]
    exact, half = kept["measured"]
    assert (exact["largest_difference"], exact["rank_correlation"]) == (0, pytest.approx(1))
    assert 0 < half["largest_difference"] < 0.05
    assert set(half["milliseconds"]) == set(half["spread"]) == {"1"}


def test_a_dry_run_and_a_version_that_is_fastest_already_publish_nothing(
    store: ModelStore, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_faster(monkeypatch, BFLOAT16)
    assert tune("--dry-run")["chosen"] == BFLOAT16.model_dump()
    only_faster(monkeypatch, FLOAT32)
    assert tune()["version"] is None
    assert store.versions("plate") == [1]


def test_it_is_activated_where_that_is_asked_for(
    store: ModelStore, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_faster(monkeypatch, BFLOAT16)
    tune("--activate")
    assert store.active("plate") == 2


def operate(store: ModelStore, make: Callable[[Detector, Operation], Operation]) -> Operation:
    """Put an operation in force for version 1."""
    detector = Detector.load(store.folder("plate", 1), "cpu")
    return Operations(store).record(detector, partial(make, detector))


def test_the_rate_in_force_goes_on(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((10, 100), np.bool_)
    mask[:, :45] = True
    region = RegionOfInterest.of_mask(mask)
    before = operate(store, partial(revised, author="ann", rate=0.4, region=region))
    only_faster(monkeypatch, BFLOAT16)
    outcome = run_main(capsys, "tune", "plate", "--models", store.root, *COMPUTE, "--rounds", "2", "--activate")
    assert outcome.status == 0, outcome.errors
    after = Detector.load(store.folder("plate", 2), "cpu")
    assert after.operating_point == after.calibration.operating_point(0.4)
    decides = Operations(store).in_force(after)
    assert decides.region_of_interest == region
    assert decides.operating_point == after.operating_point_for(0.4, region)
    thresholds = [one.operating_point.image_threshold for one in (before, decides)]
    assert "false-reject rate 40.00%, image threshold {:.4f} -> {:.4f}".format(*thresholds) in outcome.output
    assert "by hand" not in outcome.errors


def test_a_threshold_set_by_hand_goes_on_as_the_rate_that_it_stood_for(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def by_hand(detector: Detector, before: Operation) -> Operation:
        scores = np.sort(detector.calibration.image_scores)
        threshold = float(scores[-2:].mean())  # one of five is above it
        changes = {"image_threshold": threshold, "false_reject_rate": detector.calibration.rate_of(threshold)}
        point = before.operating_point.model_copy(update={**changes, "invalidity_threshold": 1.5})
        return before.model_copy(update={"operating_point": point})

    operation = operate(store, by_hand)
    only_faster(monkeypatch, BFLOAT16)
    outcome = run_main(capsys, "tune", "plate", "--models", store.root, *COMPUTE, "--rounds", "2", "--json")
    assert outcome.status == 0, outcome.errors
    assert "operation 1, were set by hand" in outcome.errors
    assert "33.33%" in outcome.errors
    after = Detector.load(store.folder("plate", 2), "cpu")
    assert outcome.result["false_reject_rate"] == operation.operating_point.false_reject_rate == 2 / 6
    assert after.operating_point.image_threshold == np.sort(after.calibration.image_scores)[-2]
    assert after.operating_point.invalidity_threshold == 1.5


def test_a_version_that_does_not_run_here_is_tuned_all_the_same(
    store: ModelStore, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = make(SMALL)
    gpu = InferencePlan(precision="float32", engine="cuda_graph")
    with monkeypatch.context() as patch:
        patch.setattr(detector.scan, "configuration", SMALL.model_copy(update={"inference": gpu}))
        store.publish("plate", detector.save)
    only_faster(monkeypatch, BFLOAT16)
    result = tune()
    assert (result["of_version"], result["own"]["engine"], result["version"]) == (2, "cuda_graph", 3)
    assert "needs a CUDA GPU" in result["failed"]["float32 cuda_graph"]
    assert Detector.load(store.folder("plate", 3), "cpu").predict([part(3, 60, 70)])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nTried"), RuntimeError("")], ids=type)
@pytest.mark.parametrize("where", ["look", "made"])
def test_a_plan_that_fails_leaves_the_others(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, where: str
) -> None:
    only_faster(monkeypatch, FLOAT32)
    emptied: list[bool] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(True))
    failing(monkeypatch, BFLOAT16, error, where)
    result = tune()
    assert result["failed"] == {"bfloat16 torch": "CUDA out of memory." if str(error) else "RuntimeError"}
    assert [line["precision"] for line in result["measured"]] == ["float32"]
    assert emptied == [True]


def test_a_plan_whose_large_batch_does_not_fit_fails_before_any_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Scan.look

    def cramped(scan: Scan, images: NDArray[np.uint8]) -> Look:
        if len(images) == 12 and scan.configuration.inference == BFLOAT16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return look(scan, images)

    monkeypatch.setattr(Scan, "look", cramped)
    lines, tried, failed = tuning.measure(make(SMALL), [FLOAT32, BFLOAT16], (1, 12), 1)
    assert [line.plan for line in lines] == list(tried) == [FLOAT32]
    assert failed == {"bfloat16 torch": "CUDA out of memory."}


def test_the_time_of_a_batch_is_told_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tuning, "_timings", lambda tried, images, rounds: {FLOAT32.name: Timing((len(images), 2 * len(images)))}
    )
    [line], _, _ = tuning.measure(make(SMALL), [FLOAT32], (1, 4), 2)
    assert line.milliseconds == {1: 1500, 4: 1500}
    assert line.spread == {1: (1250, 1750), 4: (1250, 1750)}


def test_without_float32_there_is_nothing_to_compare_with(
    store: ModelStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, FLOAT32, torch.OutOfMemoryError("CUDA out of memory."), "look")
    outcome = run("tune", "plate", "--models", store.root, *COMPUTE, "--rounds", "2", "--json")
    outcome.assert_refused(2, "plate: float32 torch", "CUDA out of memory.")
    assert store.versions("plate") == [1]


def test_scans_that_lost_are_given_up_before_the_next_version_is_made(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_faster(monkeypatch, BFLOAT16)
    made: dict[InferencePlan, weakref.ref[object]] = {}
    tuned = tuning.tuned

    def noted(scan: Scan | Ensemble, plan: InferencePlan) -> Scan | Ensemble:
        found = by_plan(scan, plan)
        made[plan] = weakref.ref(found)
        return found

    def checked(*arguments: Any) -> Detector:
        gc.collect()
        assert [plan for plan, scan in made.items() if scan() is not None] == [BFLOAT16]
        return tuned(*arguments)

    monkeypatch.setattr(tuning, "by_plan", noted)
    monkeypatch.setattr(tuning, "tuned", checked)
    assert tune()["version"] == 2
    assert set(made) == {FLOAT32, BFLOAT16}


def failing(monkeypatch: pytest.MonkeyPatch, plan: InferencePlan, error: RuntimeError, where: str) -> None:
    """Have a plan fail, when its scan is made or at its first look."""

    def fail(*_: object) -> NoReturn:
        raise error

    def made(scan: Scan | Ensemble, wanted: InferencePlan) -> Scan | Ensemble:
        if wanted == plan and where == "made":
            fail()
        found = by_plan(scan, wanted)
        if wanted == plan:
            monkeypatch.setattr(found, "look", fail)
        return found

    monkeypatch.setattr(tuning, "by_plan", made)


def measured(plan: InferencePlan, milliseconds: float) -> Measured:
    return Measured(plan, {1: milliseconds}, {1: (milliseconds, milliseconds)}, 0, 0, 1)


def test_noise_changes_no_plan() -> None:
    lines = [measured(FLOAT32, 10.2), measured(BFLOAT16, 10)]
    assert fastest(lines, FLOAT32, 1) == FLOAT32
    assert fastest(lines, COMPILED, 1) == BFLOAT16  # the version's own does not run here
    assert fastest([measured(FLOAT32, 11), lines[1]], FLOAT32, 1) == BFLOAT16
