"""From good images to a published detector: what is held out, what is refused, and that it can be done again."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from models.calibration_set import calibrate
from models.densities import (
    GaussianDensityConfiguration,
    KernelDensity,
    KernelDensityConfiguration,
    RotationClassifierConfiguration,
    create_density,
)
from models.densities.reduction import ReductionConfiguration
from models.detector import Detector, DetectorConfiguration, Scan
from models.encoders import DensePatchConfiguration, Encoder, create_encoder
from models.geometry import ScanGeometry
from models.images import ResizeMode, place_image, read_image
from models.store import ModelStore
from training.data import DataError, open_dataset
from training.fit import (
    SMALLEST_DATASET,
    FitConfiguration,
    Fitted,
    WindowStream,
    bank_size_for,
    draw_bank,
    fit,
)
from training.pretext import CutPasteConfiguration, NoneConfiguration, RotationConfiguration, RotNetConfiguration
from training.run_files import CHECKPOINT_FILE, LOG_FILE
from training.trainer import Progress, Trainer, TrainingConfiguration, TrainingInterrupted

CPU = torch.device("cpu")
GEOMETRY = ScanGeometry(image_size=64)
DETECTOR = DetectorConfiguration(geometry=GEOMETRY, encoder=DensePatchConfiguration(width=2))
IMAGES = 12
HELD_OUT = 3  # a quarter
STEPS = 3


def make_configuration(*, training: dict[str, Any] | None = None, **settings: Any) -> FitConfiguration:
    schedule: dict[str, Any] = {
        "pretext": CutPasteConfiguration(head_depth=1, head_width=8),
        "steps": STEPS,
        "batch_size": 4,
        "crop_patches": 1,
        "log_steps": 1,
    }
    return FitConfiguration(
        **{
            "detector": DETECTOR,
            "training": TrainingConfiguration(**(schedule | (training or {}))),
            "bank_size": 90,
            "calibration_fraction": HELD_OUT / IMAGES,
            **settings,
        }
    )


def pixels(seed: int) -> NDArray[np.uint8]:
    """A good part of its own."""
    random = np.random.default_rng(seed)
    image: NDArray[np.uint8] = random.integers(0, 256, (GEOMETRY.image_size,) * 2 + (3,), dtype=np.uint8)
    return image


def write(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A plain folder of good images."""
    for index in range(IMAGES):
        write(tmp_path / "cap" / f"{index:03d}.png", pixels(index))
    return tmp_path / "cap"


def run_fit(data: Path, folder: Path, configuration: FitConfiguration | None = None, **options: Any) -> Fitted:
    dataset = open_dataset(data, "cap", skip_broken=options.get("skip_broken", False))
    return fit(dataset, configuration or make_configuration(), device=CPU, folder=folder, **options)


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


# --- the density and the thresholds -----------------------------------------------------------------------------------


def test_the_rate_asked_for_sets_the_thresholds(data: Path, tmp_path: Path) -> None:
    configuration = make_configuration(calibration_fraction=0.5, false_reject_rate=0.5)
    detector = run_fit(data, tmp_path / "run", configuration).detector
    scores = sorted(detector.calibration.image_scores)
    assert len(scores) == IMAGES // 2
    assert detector.operating_point.false_reject_rate == 0.5
    assert detector.operating_point.image_threshold == scores[3]  # 3 of the 7 ranks are above it, and 0.5 * 7 >= 3
    assert detector.operating_point.pixel_threshold == sorted(detector.calibration.map_maxima)[3]
    default = run_fit(data, tmp_path / "default").detector
    assert default.operating_point.false_reject_rate == pytest.approx(1 / (HELD_OUT + 1))


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Of an untrained encoder."""
    torch.manual_seed(0)
    density = create_density(DETECTOR.density, CPU)
    return Scan(DETECTOR, create_encoder(DETECTOR.encoder, GEOMETRY), density, CPU)


def rows(scan: Scan, image: NDArray[np.uint8]) -> set[bytes]:
    return {row.tobytes() for row in scan.embed(image[None]).flatten(0, 2).numpy()}


@pytest.mark.parametrize(("size", "of_each"), [(20, 5), (22, 6), (1, 1), (10**6, GEOMETRY.grid_size**2)])
def test_the_bank_has_as_many_windows_of_every_image(scan: Scan, size: int, of_each: int) -> None:
    images = np.stack([pixels(seed) for seed in range(4)])
    bank = draw_bank(scan, images, size, seed=0)
    assert bank.shape == (4 * of_each, scan.encoder.dimension)
    assert bank.dtype == np.float32
    for number, image in enumerate(images):
        drawn = {row.tobytes() for row in bank[number * of_each : (number + 1) * of_each]}
        assert len(drawn) == of_each  # none twice
        assert drawn <= rows(scan, image)


def test_the_bank_is_drawn_at_random_and_the_seed_decides(scan: Scan) -> None:
    images = np.stack([pixels(0)] * 3)  # the same image: the same windows would be the same rows
    bank = draw_bank(scan, images, 30, seed=0)
    np.testing.assert_array_equal(bank, draw_bank(scan, images, 30, seed=0))
    assert not np.array_equal(bank, draw_bank(scan, images, 30, seed=1))
    assert not np.array_equal(bank[:10], bank[10:20])


approx = partial(pytest.approx, rel=0, abs=1e-5)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_calibration_scores_are_those_that_the_detector_gives(scan: Scan, resize: ResizeMode) -> None:
    originals = [pixels(seed)[: 20 + 10 * seed] for seed in range(5)]
    placed = [place_image(image, GEOMETRY.image_size, resize) for image in originals]
    images, contents = np.stack([image for image, _ in placed]), [placement.content for _, placement in placed]
    scan.density.fit(draw_bank(scan, images[:2], 30, seed=0))
    calibration_set = calibrate(scan, GEOMETRY, images[2:], contents[2:])
    calibration = calibration_set.scores

    configuration = DETECTOR.model_copy(update={"resize": resize})
    own = Scan(configuration, scan.encoder, scan.density, CPU)
    detector = Detector("cap", own, calibration_set, data_fingerprint="0" * 64)
    predictions = [detector.predict([image])[0] for image in originals[2:]]
    # Float32 sums may round otherwise from one call to the next: the allocator decides how arrays are aligned.
    assert calibration.image_scores == approx([prediction.image_score for prediction in predictions])
    insides = [prediction.placement.crop(prediction.anomaly_map) for prediction in predictions]
    assert calibration.map_maxima == approx([inside.max() for inside in insides])
    if resize == "squash":  # all that was scanned counts
        assert calibration.image_scores == approx([prediction.score_map.max() for prediction in predictions])
        assert calibration.map_maxima == approx([prediction.anomaly_map.max() for prediction in predictions])
    else:
        assert all(
            inside.shape != prediction.anomaly_map.shape
            for inside, prediction in zip(insides, predictions, strict=True)
        )
    assert len(set(calibration.image_scores)) == 3
    assert calibration_set.score_maps == approx(np.stack([prediction.score_map for prediction in predictions]))
    assert calibration_set.contents == tuple(prediction.placement.content for prediction in predictions)
    np.testing.assert_array_equal(calibration_set.inputs, images[2:])


def test_a_letterboxed_fit_calibrates_on_the_held_out_images_as_they_lie(data: Path, tmp_path: Path) -> None:
    for index, path in enumerate(sorted(data.iterdir())):  # each lies in its square in its own way
        shown = np.s_[: 12 + 3 * index] if index % 2 else np.s_[:, : 12 + 3 * index]
        write(path, read_image(path)[shown])
    letterbox = DETECTOR.model_copy(update={"resize": "letterbox"})
    configuration = make_configuration(detector=letterbox, training={"steps": 1})
    detector = run_fit(data, tmp_path / "run", configuration).detector
    predictions = [detector.predict([read_image(path)])[0] for path in data.iterdir()]
    scores = [prediction.image_score for prediction in predictions]
    maxima = [prediction.placement.crop(prediction.anomaly_map).max() for prediction in predictions]
    for image_score, maximum in zip(detector.calibration.image_scores, detector.calibration.map_maxima, strict=True):
        assert any(pair == approx([image_score, maximum]) for pair in zip(scores, maxima, strict=True))


def test_stage_2_says_how_far_it_is(data: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    run_fit(data, tmp_path / "run", count=lambda *counted: told.append(counted))
    images = IMAGES - HELD_OUT
    assert told[:images] == [("embedding images, pass 1", done, images) for done in range(1, images + 1)]


def test_a_kernel_density_learns_from_all_windows_and_says_what_it_made(data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    detector = run_fit(data, tmp_path / "run", make_configuration(bank_size=None), stage=told.append).detector
    facts = detector.description()["members"][0]
    windows = (IMAGES - HELD_OUT) * GEOMETRY.grid_size**2
    assert (facts["mode"], facts["samples"], facts["offered"]) == (
        "exact",
        windows,
        windows,
    )  # so few are not compressed
    assert f"exact: a bank of {windows} embeddings" in told


def test_a_compressed_density_goes_all_the_way(data: Path, tmp_path: Path) -> None:
    density = KernelDensityConfiguration(mode="compressed", centres=40, reduction=ReductionConfiguration(dimension=9))
    configuration = make_configuration(
        detector=DETECTOR.model_copy(update={"density": density}), bank_size=None, training={"steps": 1}
    )
    told: list[str] = []
    detector = run_fit(data, tmp_path / "run", configuration, stage=told.append).detector
    facts = detector.description()["members"][0]
    windows = (IMAGES - HELD_OUT) * GEOMETRY.grid_size**2
    assert (facts["mode"], facts["bank"], facts["offered"]) == ("compressed", 40, windows)
    assert facts["samples"] == windows - facts["held_out"] == windows - windows // 10
    assert any(
        f"40 centres for {facts['samples']} embeddings; error on {windows // 10} held-out" in text for text in told
    )
    store = ModelStore(tmp_path / "models")
    loaded = Detector.load(store.folder("cap", store.publish("cap", detector.save)), "cpu")
    assert loaded.description()["members"] == [facts]
    for before, after in zip(detector.predict([pixels(0)]), loaded.predict([pixels(0)]), strict=True):
        np.testing.assert_array_equal(after.score_map, before.score_map)


def test_a_stream_embeds_the_same_windows_each_time(scan: Scan) -> None:
    images = np.stack([pixels(seed) for seed in range(3)])
    for size, of_each in ((30, 10), (None, GEOMETRY.grid_size**2)):
        stream = WindowStream(scan, images, size, seed=0)
        assert (stream.count, stream.dimension) == (3 * of_each, scan.encoder.dimension)
        first, again = (torch.cat(list(stream)) for _ in range(2))
        assert first.shape == (stream.count, stream.dimension)
        torch.testing.assert_close(first, again)
        np.testing.assert_array_equal(first.numpy(), draw_bank(scan, images, size, seed=0))


@pytest.mark.parametrize(
    ("density", "asked", "size"),
    [
        (KernelDensityConfiguration(), None, None),
        (KernelDensityConfiguration(), 7, 7),
        (GaussianDensityConfiguration(), None, 4096),
        (GaussianDensityConfiguration(), 7, 7),
    ],
)
def test_how_many_embeddings_where_nothing_is_said(density: Any, asked: int | None, size: int | None) -> None:
    assert bank_size_for(density, asked) == size
