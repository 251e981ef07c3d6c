"""From good images to a published detector: what is held out, what is refused, and that it can be done again."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.densities import (
    KernelDensity,
    RotationClassifierConfiguration,
)
from models.detector import Detector
from models.encoders import Encoder
from models.images import read_image
from models.store import ModelStore
from tests.training.fit_support import (
    DETECTOR,
    GEOMETRY,
    HELD_OUT,
    IMAGES,
    STEPS,
    make_configuration,
    pixels,
    run_fit,
    write,
    write_parts,
)
from training.data import DataError, open_dataset
from training.fit import (
    ADVISED,
    SMALLEST_DATASET,
    FitConfiguration,
)
from training.pretext import CutPasteConfiguration, NoneConfiguration, RotationConfiguration, RotNetConfiguration
from training.run_files import CHECKPOINT_FILE, LOG_FILE
from training.trainer import Progress, Trainer, TrainingInterrupted


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A plain folder of good images."""
    return write_parts(tmp_path / "cap")


def learned(detector: Detector) -> dict[str, torch.Tensor]:
    """All that the training images, and only they, decide: the encoder, the bank and gamma."""
    [member] = detector.scan.members
    assert isinstance(member.density, KernelDensity)
    return {**member.encoder.state_dict(), "bank": member.density.bank.vectors, **member.density.state}


def same(one: Detector, other: Detector) -> bool:
    state, other_state = learned(one), learned(other)
    return state.keys() == other_state.keys() and all(torch.equal(state[name], other_state[name]) for name in state)


def calibrated_on(data: Path, detector: Detector) -> list[str]:
    """The images whose scores are the calibration's."""
    names = []
    for path in sorted(data.iterdir()):
        score_maps, _ = detector.scan.maps(read_image(path)[None])
        if float(score_maps.max()) in detector.calibration.image_scores:
            names.append(path.name)
    return names


def held_out_by_change(data: Path, folder: Path, groups: list[list[str]], configuration: FitConfiguration) -> list[int]:
    """Which groups of images can be painted over without a trace in what was learned."""
    before = run_fit(data, folder / "before", configuration).detector
    found = []
    for number, names in enumerate(groups):
        originals = {name: read_image(data / name) for name in names}
        for shade, name in enumerate(names):
            write(data / name, np.full_like(originals[name], 255 - shade))
        if same(run_fit(data, folder / str(number), configuration).detector, before):
            found.append(number)
        for name, original in originals.items():
            write(data / name, original)
    return found


# --- the split --------------------------------------------------------------------------------------------------------


def test_calibration_images_leave_no_trace_in_encoder_bank_or_gamma(data: Path, tmp_path: Path) -> None:
    before = run_fit(data, tmp_path / "before").detector
    held_out = calibrated_on(data, before)
    assert len(held_out) == len(before.calibration) == HELD_OUT
    assert before.training["good_images"] == IMAGES - HELD_OUT

    for shade, name in enumerate(held_out):
        write(data / name, np.full((GEOMETRY.image_size,) * 2 + (3,), 255 - shade, dtype=np.uint8))
    after = run_fit(data, tmp_path / "after").detector
    assert same(before, after)
    assert not np.isin(after.calibration.image_scores, before.calibration.image_scores).any()
    assert after.operating_point != before.operating_point

    other = next(path for path in sorted(data.iterdir()) if path.name not in held_out)
    write(other, pixels(99))
    assert not same(run_fit(data, tmp_path / "other").detector, before)


def test_a_copy_of_an_image_is_passed_over(data: Path, tmp_path: Path) -> None:
    """Or it might lie on the other side of the split."""
    before = run_fit(data, tmp_path / "before").detector
    copies = []
    for path in sorted(data.iterdir()):
        copies.append(path.with_name(f"{path.stem}_copy.bmp"))
        write(copies[-1], read_image(path))
    fitted = run_fit(data, tmp_path / "after")
    assert [path for path, _ in fitted.skipped] == copies
    assert f"the same, pixel by pixel, as {data / '000.png'}" in fitted.skipped[0][1]
    assert fitted.detector.training["skipped_images"] == IMAGES
    assert same(fitted.detector, before)
    np.testing.assert_array_equal(fitted.detector.calibration.image_scores, before.calibration.image_scores)
    assert fitted.detector.data_fingerprint == before.data_fingerprint


def test_parts_of_one_group_stay_on_one_side(data: Path, tmp_path: Path) -> None:
    for path in list(data.iterdir()):
        index = int(path.stem)
        path.rename(data / f"lot{index // 4}_{index:03d}.png")
    groups = [sorted(path.name for path in data.glob(f"lot{lot}_*")) for lot in range(3)]
    by_lot = make_configuration(group_pattern=r"^(lot\d)_", training={"steps": 1})
    assert len(held_out_by_change(data, tmp_path / "by lot", groups, by_lot)) == 1
    assert len(run_fit(data, tmp_path / "lots", by_lot).detector.calibration) == len(groups[0])
    # Without the pattern an image of each lot, or nearly, is held out; so that the test above could have failed.
    detector = run_fit(data, tmp_path / "no pattern", make_configuration(training={"steps": 1})).detector
    assert len({name[:4] for name in calibrated_on(data, detector)}) > 1


def test_every_image_is_on_one_side(data: Path, tmp_path: Path) -> None:
    for fraction in (0.1, 0.5, 0.9):
        configuration = make_configuration(calibration_fraction=fraction, training={"steps": 1})
        detector = run_fit(data, tmp_path / str(fraction), configuration).detector
        assert len(detector.calibration) + detector.training["good_images"] == IMAGES
        assert len(detector.calibration) == pytest.approx(fraction * IMAGES, abs=1)


# --- refused ----------------------------------------------------------------------------------------------------------


def assert_untouched(folder: Path) -> None:
    """No training has begun."""
    assert not (folder / LOG_FILE).exists()
    assert not (folder / CHECKPOINT_FILE).exists()


def test_too_few_images_are_refused(data: Path, tmp_path: Path) -> None:
    paths = sorted(data.iterdir())
    for path in paths[SMALLEST_DATASET - 1 :]:
        path.unlink()
    few = f"{SMALLEST_DATASET - 1} readable good images of cap"
    message = f"{data} has {few}, copies aside; at least {SMALLEST_DATASET} are needed"
    with pytest.raises(DataError, match=message):
        run_fit(data, tmp_path / "run")
    assert_untouched(tmp_path / "run")
    write(paths[-1], pixels(99))
    assert len(run_fit(data, tmp_path / "run").detector.calibration) == SMALLEST_DATASET // 4


def test_few_images_are_told(data: Path, tmp_path: Path) -> None:
    def told(name: str) -> list[str]:
        stages: list[str] = []
        run_fit(data, tmp_path / name, stage=stages.append)
        return [text for text in stages if "warning" in text]

    assert told("few") == [f"warning: {IMAGES} good images are few for a threshold; {ADVISED} or more are advised"]
    for seed in range(IMAGES, ADVISED):
        write(data / f"{seed:03d}.png", pixels(seed))
    assert told("enough") == []


def test_images_that_cannot_be_read_do_not_count_as_enough(data: Path, tmp_path: Path) -> None:
    for path in sorted(data.iterdir())[SMALLEST_DATASET - 1 :]:
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=f"has {SMALLEST_DATASET - 1} readable good images"):
        run_fit(data, tmp_path / "run", skip_broken=True)


@pytest.mark.parametrize("rate", [0.01, 1 / (HELD_OUT + 2)])
def test_a_rate_that_so_few_images_cannot_vouch_for_is_refused_before_training(
    data: Path, tmp_path: Path, rate: float
) -> None:
    with pytest.raises(DataError, match=f"false-reject rate of .* from {HELD_OUT} calibration images"):
        run_fit(data, tmp_path / "run", make_configuration(false_reject_rate=rate))
    assert_untouched(tmp_path / "run")


@pytest.mark.parametrize("pattern", ["(", "lot", r"lot(\d)"], ids=["no expression", "no group", "no match"])
def test_a_group_pattern_that_does_not_fit_is_refused_before_training(data: Path, tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match="group pattern"):
        run_fit(data, tmp_path / "run", make_configuration(group_pattern=pattern))
    assert_untouched(tmp_path / "run")


@pytest.mark.parametrize(
    "settings",
    [
        {"bank_size": 0},
        {"calibration_fraction": 0},
        {"calibration_fraction": 1},
        {"false_reject_rate": 0},
        {"false_reject_rate": 1},
        {"sigma": 4},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FitConfiguration(**settings)


def test_a_broken_file_stops_the_fit_or_is_skipped_and_counted(data: Path, tmp_path: Path) -> None:
    broken, foreign = data / "zz.png", data / "notes.txt"
    broken.write_bytes((data / "000.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"zz\.png"):
        run_fit(data, tmp_path / "run")
    assert_untouched(tmp_path / "run")
    foreign.write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.txt"):
        run_fit(data, tmp_path / "run")
    fitted = run_fit(data, tmp_path / "run", skip_broken=True)
    assert {path for path, _ in fitted.skipped} == {broken, foreign}
    assert all(reason for _, reason in fitted.skipped)
    assert fitted.detector.training["skipped_images"] == 2
    assert fitted.detector.training["good_images"] + len(fitted.detector.calibration) == IMAGES


@pytest.mark.parametrize("pretext", [CutPasteConfiguration(), NoneConfiguration()], ids=lambda pretext: pretext.name)
def test_a_rotation_classifier_of_another_task_is_refused_before_training(pretext: Any) -> None:
    detector = DETECTOR.model_copy(update={"density": RotationClassifierConfiguration()})
    with pytest.raises(
        ValidationError, match=f"{pretext.name} does not train; use the pretext task rotation or rotnet"
    ):
        make_configuration(detector=detector, training={"pretext": pretext})


# --- done again -------------------------------------------------------------------------------------------------------


def test_the_seed_decides_the_operating_point(data: Path, tmp_path: Path) -> None:
    def of_seed(seed: int, name: str) -> Detector:
        return run_fit(data, tmp_path / name, make_configuration(training={"seed": seed})).detector

    one, again, other = of_seed(1, "one"), of_seed(1, "again"), of_seed(2, "other")
    assert one.operating_point == again.operating_point
    assert same(one, again)
    np.testing.assert_array_equal(one.calibration.image_scores, again.calibration.image_scores)
    np.testing.assert_array_equal(one.calibration.map_maxima, again.calibration.map_maxima)
    assert one.operating_point != other.operating_point
    assert calibrated_on(data, one) != calibrated_on(data, other)


def test_an_interrupted_fit_goes_on_to_the_same_detector(data: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        signal.raise_signal(signal.SIGINT)

    stages: list[str] = []
    with pytest.raises(TrainingInterrupted):
        run_fit(data, tmp_path / "interrupted", report=stop)
    resumed = run_fit(data, tmp_path / "interrupted", stage=stages.append).detector
    assert any(f"from step 1 of {STEPS}" in stage for stage in stages)
    whole = run_fit(data, tmp_path / "whole").detector
    assert same(resumed, whole)
    assert resumed.operating_point == whole.operating_point


def test_what_is_published_predicts_what_was_fitted(data: Path, tmp_path: Path) -> None:
    detector = run_fit(data, tmp_path / "run").detector
    assert detector.version is None
    store = ModelStore(tmp_path / "models")
    assert store.publish(detector.category, detector.save, activate=False) == 1
    assert store.active("cap") is None
    assert store.publish(detector.category, detector.save) == 2
    assert store.active("cap") == 2
    loaded = Detector.load(store.folder("cap", 2), "cpu")
    assert loaded.version == 2
    images = [pixels(50), pixels(51)[:40, :60], np.zeros((30, 200, 3), dtype=np.uint8)]
    for before, after in zip(detector.predict(images), loaded.predict(images), strict=True):
        np.testing.assert_array_equal(before.score_map, after.score_map)
        np.testing.assert_array_equal(before.anomaly_map, after.anomaly_map)
        assert (before.image_score, before.p_value, before.verdict) == (after.image_score, after.p_value, after.verdict)
        assert before.regions == after.regions
    assert loaded.operating_point == detector.operating_point
    assert loaded.training == detector.training
    dataset = open_dataset(data, "cap")
    assert loaded.data_fingerprint == dataset.fingerprint()


@pytest.mark.parametrize("pretext", [RotationConfiguration(head_depth=1, head_width=8), RotNetConfiguration()])
def test_a_rotation_classifier_keeps_the_head_that_was_trained(data: Path, tmp_path: Path, pretext: Any) -> None:
    heads: list[dict[str, torch.Tensor]] = []

    class Watched(Trainer):
        def run(self, *arguments: Any) -> Encoder:
            encoder = super().run(*arguments)
            heads.append({name: value.clone() for name, value in self.task.state_dict().items()})
            return encoder

    detector = DETECTOR.model_copy(update={"density": RotationClassifierConfiguration()})
    configuration = make_configuration(detector=detector, training={"pretext": pretext})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.fit.Trainer", Watched)
        fitted = run_fit(data, tmp_path / "run", configuration).detector
    store = ModelStore(tmp_path / "models")
    store.publish(fitted.category, fitted.save)
    loaded = Detector.load(store.folder("cap", 1), "cpu")
    kept = loaded.scan.members[0].density.state
    [trained] = heads
    for name, value in trained.items():
        if name.startswith("head."):
            assert torch.equal(kept[name], value)
    [before], [after] = fitted.predict([pixels(50)]), loaded.predict([pixels(50)])
    np.testing.assert_array_equal(before.score_map, after.score_map)
    assert before.score_map.std() > 0


def test_the_fingerprint_is_of_the_images_that_were_trained_on(data: Path, tmp_path: Path) -> None:
    """Not of what lies there when training ends, nor of files that were passed over."""
    fingerprint = open_dataset(data, "cap").fingerprint()
    (data / "zz.png").symlink_to(tmp_path / "gone")

    def change(progress: Progress) -> None:
        write(data / "000.png", pixels(99))
        (data / "001.png").unlink(missing_ok=True)

    fitted = run_fit(data, tmp_path / "run", report=change, skip_broken=True)
    assert fitted.detector.data_fingerprint == fingerprint
    assert [path.name for path, _ in fitted.skipped] == ["zz.png"]
