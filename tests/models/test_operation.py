"""What is changed at run time: numbered, recorded, and true to the rate that was asked for."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from models.artifact import ArtifactError
from models.calibration import OperatingPoint
from models.configuration import DetectorConfiguration
from models.detector import Detector
from models.geometry import Box, ScanGeometry
from models.operation import Operation, Operations, UnknownOperation, revised, set_by_hand
from models.prediction import Verdict
from models.region_of_interest import RegionOfInterest
from models.store import ModelStore
from models.store_errors import RecordExists, UnknownVersion
from tests.models.detectors import SMALL, make, part

CATEGORY = "plate"
DEFECT = Box(x=84, y=12, width=24, height=24)  # of 120 x 90 pixels: top right
LETTERBOX = SMALL.model_copy(update={"resize": "letterbox", "sigma": 5.0})
both = pytest.mark.parametrize("configuration", [SMALL, LETTERBOX], ids=["squash", "letterbox"])


def half(*, left: bool) -> RegionOfInterest:
    mask = np.zeros((10, 100), np.bool_)
    mask[:, np.s_[:45] if left else np.s_[55:]] = True
    return RegionOfInterest.of_mask(mask)


def operation(detector: Detector, region: RegionOfInterest | None = None, rate: float | None = None) -> Operation:
    return revised(detector, detector.own_operation, author="ann", rate=rate, region=region)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path)
    store.publish(CATEGORY, make().save)
    return store


def loaded(store: ModelStore, version: int = 1) -> Detector:
    return Detector.load(store.folder(CATEGORY, version), "cpu")


# --- the region of interest -----------------------------------------------------------------------------------------


@both
def test_outside_the_region_nothing_counts(configuration: DetectorConfiguration) -> None:
    detector = make(configuration)
    image = part(70, 90, 120, DEFECT)
    [everywhere] = detector.predict([image])
    [inside] = detector.predict([image], operation(detector, half(left=False)))
    assert everywhere.verdict is inside.verdict is Verdict.DEFECTIVE
    assert everywhere.image_score == inside.image_score
    [outside] = detector.predict([image], operation(detector, half(left=True)))
    assert outside.verdict is Verdict.GOOD
    assert outside.regions == ()
    assert outside.image_score < everywhere.image_score
    assert outside.p_value > detector.calibration.smallest_rate
    np.testing.assert_array_equal(outside.score_map, everywhere.score_map)


@both
@pytest.mark.parametrize("left", [True, False])
def test_the_image_score_is_the_highest_of_the_windows_that_count(
    configuration: DetectorConfiguration, left: bool
) -> None:
    detector, region = make(configuration), half(left=left)
    [prediction] = detector.predict([part(70, 90, 120, DEFECT)], operation(detector, region))
    counted = region.windows(detector.geometry, prediction.placement.content)
    assert 0 < counted.sum() < counted.size
    assert prediction.image_score == prediction.score_map[counted].max()


def test_regions_end_where_the_region_of_interest_does() -> None:
    detector = make()
    low = detector.own_operation.operating_point.model_copy(update={"pixel_threshold": -9.0})
    everything = detector.own_operation.model_copy(update={"operating_point": low})
    [whole] = detector.predict([part(70, 90, 120)], everything)
    assert whole.regions[0].box == Box(x=0, y=0, width=120, height=90)
    [part_of] = detector.predict(
        [part(70, 90, 120)], everything.model_copy(update={"region_of_interest": half(left=True)})
    )
    assert part_of.regions[0].box == Box(x=0, y=0, width=54, height=90)


@both
def test_a_calibration_in_a_region_is_of_the_scores_that_its_images_have_there(
    configuration: DetectorConfiguration,
) -> None:
    """As the detector would give them: so the promise of the false-reject rate stays true under a region."""
    detector, region = make(configuration), half(left=True)
    calibration = detector.calibration_for(region)
    images = [part(seed, 90, 120) for seed in range(3, 8)]  # those it was calibrated with
    predictions = detector.predict(images, operation(detector, region))
    assert calibration.image_scores == pytest.approx([prediction.image_score for prediction in predictions], abs=1e-5)
    assert (calibration.image_scores <= detector.calibration.image_scores).all()
    assert (calibration.image_scores < detector.calibration.image_scores).any()
    maxima = [
        prediction.placement.crop(prediction.anomaly_map)[region.pixels(prediction.placement.content)].max()
        for prediction in predictions
    ]
    assert calibration.map_maxima == pytest.approx(maxima, abs=1e-5)
    assert [prediction.p_value for prediction in predictions] == [
        calibration.p_value(prediction.image_score) for prediction in predictions
    ]


def test_a_region_that_is_everything_calibrates_as_none() -> None:
    detector = make()
    everything = detector.calibration_for(RegionOfInterest.of_mask(np.ones((3, 3), np.bool_)))
    np.testing.assert_allclose(everything.image_scores, detector.calibration.image_scores, rtol=0)
    np.testing.assert_allclose(everything.map_maxima, detector.calibration.map_maxima, rtol=0, atol=1e-6)


def test_the_thresholds_of_a_region_reject_the_share_asked_for() -> None:
    detector, region = make(), half(left=True)
    for rate in (1 / 6, 0.5):
        point = operation(detector, region, rate).operating_point
        assert point == detector.calibration_for(region).operating_point(rate)
        assert point != detector.calibration.operating_point(rate)


def test_a_region_at_the_very_edge_is_scored_by_the_windows_beside_it() -> None:
    detector = make(SMALL.model_copy(update={"geometry": ScanGeometry(image_size=97)}))
    mask = np.zeros((97, 97), np.bool_)
    mask[:3] = True
    [prediction] = detector.predict([part(70, 97, 97)], operation(detector, RegionOfInterest.of_mask(mask)))
    assert prediction.image_score == prediction.score_map[0].max()


# --- three parts of a prediction ------------------------------------------------------------------------------------


@both
def test_placing_scanning_and_judging_are_predicting(configuration: DetectorConfiguration) -> None:
    detector = make(configuration)
    images = [part(70, 90, 120, DEFECT), part(71, 50, 40)]
    chosen = operation(detector, half(left=False))
    placed = [detector.place(image) for image in images]
    score_maps, anomaly_maps = detector.scan.maps(np.stack([pixels for pixels, _ in placed]))
    for predicted, score_map, anomaly_map, (_, placement) in zip(
        detector.predict(images, chosen), score_maps, anomaly_maps, placed, strict=True
    ):
        judged = detector.judge(score_map, anomaly_map, placement, chosen)
        assert (judged.image_score, judged.p_value) == (predicted.image_score, predicted.p_value)
        assert (judged.verdict, judged.regions) == (predicted.verdict, predicted.regions)


# --- the record -----------------------------------------------------------------------------------------------------


def test_the_artifacts_own_settings_are_operation_0(store: ModelStore) -> None:
    detector = loaded(store)
    own = Operations(store).in_force(detector)
    assert (own.number, own.operating_point, own.region_of_interest) == (0, detector.operating_point, None)
    assert detector.manifest is not None
    assert own.created == detector.manifest.created
    assert Operations(store).history(CATEGORY, 1) == []


def test_the_last_operation_is_in_force_and_none_is_ever_changed(store: ModelStore) -> None:
    detector, operations = loaded(store), Operations(store)
    first = operations.record(detector, lambda before: revised(detector, before, author="ann", rate=0.5, note="louder"))
    second = operations.record(detector, lambda before: revised(detector, before, author="bob", region=half(left=True)))
    assert (first.number, second.number) == (1, 2)
    assert second.operating_point.false_reject_rate == 0.5  # as before
    third = operations.record(detector, lambda before: revised(detector, before, author="bob", rate=0.4))
    assert third.region_of_interest == half(left=True)
    assert operations.history(CATEGORY, 1) == [first, second, third]
    assert operations.in_force(loaded(store)) == third
    assert operations.latest_number(CATEGORY, 1) == 3
    assert (first.author, first.note) == ("ann", "louder")
    assert first.created <= second.created <= datetime.now(UTC)


def test_new_thresholds_leave_the_invalidity_threshold_in_force() -> None:
    detector = make()
    point = detector.operating_point.model_copy(update={"invalidity_threshold": 1.5})
    before = detector.own_operation.model_copy(update={"operating_point": point})
    assert revised(detector, before, author="ann", rate=0.5).operating_point.invalidity_threshold == 1.5


def test_going_back_is_a_new_operation_that_names_the_old_one(store: ModelStore) -> None:
    detector, operations = loaded(store), Operations(store)
    first = operations.record(detector, lambda before: revised(detector, before, author="ann", region=half(left=True)))
    operations.record(detector, lambda before: revised(detector, before, author="ann", rate=0.5, region=None))
    back = operations.restore(detector, 1, author="bob", note="as on Monday")
    assert (back.number, back.restores, back.author, back.note) == (3, 1, "bob", "as on Monday")
    assert (back.operating_point, back.region_of_interest) == (first.operating_point, first.region_of_interest)
    own = operations.restore(detector, 0, author="bob")
    assert (own.number, own.operating_point, own.region_of_interest) == (4, detector.operating_point, None)
    with pytest.raises(UnknownOperation, match=r"no operation 9; there is 0, 1, 2, 3, 4"):
        operations.restore(detector, 9, author="bob")


def test_two_who_record_at_once_both_have_their_number(store: ModelStore) -> None:
    detector = loaded(store)

    def record(number: int) -> int:
        point = OperatingPoint(image_threshold=number, pixel_threshold=1, false_reject_rate=0.5)
        made = detector.own_operation.model_copy(update={"operating_point": point})
        return Operations(ModelStore(store.root)).record(detector, lambda _: made).number

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(record, range(12))) == list(range(1, 13))
    thresholds = [one.operating_point.image_threshold for one in Operations(store).history(CATEGORY, 1)]
    assert sorted(thresholds) == list(range(12))


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_has_a_records_name_and_is_none_is_told_and_not_waited_for(store: ModelStore, kind: str) -> None:
    detector, operations = loaded(store), Operations(store)
    place = store.record(CATEGORY, 1, "metrics", {}).with_name("operation-1.json")
    if kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(place.with_name("metrics.json"))
    calls = 0

    def make_one(before: Operation) -> Operation:
        nonlocal calls
        calls += 1
        assert calls < 3, "it goes on and on"
        return operation(detector)

    with pytest.raises(RecordExists, match="'operation-1' already"):
        operations.record(detector, make_one)
    assert operations.latest_number(CATEGORY, 1) == operations.in_force(detector).number == 0


def test_other_records_of_a_version_are_no_operations(store: ModelStore) -> None:
    store.record(CATEGORY, 1, "metrics", {"image_auroc": 0.5})
    assert Operations(store).history(CATEGORY, 1) == []
    with pytest.raises(UnknownVersion):
        Operations(store).history(CATEGORY, 2)


def test_a_damaged_record_is_refused(store: ModelStore) -> None:
    detector, operations = loaded(store), Operations(store)
    operations.record(detector, lambda before: revised(detector, before, author="ann", rate=0.5))
    path = store.root / CATEGORY / "records" / "1" / "operation-1.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"number": 2}))
    with pytest.raises(ArtifactError, match="operation-1 is damaged"):
        operations.in_force(detector)
    del content["operating_point"]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"(?s)operation-1 is damaged.*operating_point"):
        operations.in_force(detector)


# --- a new version --------------------------------------------------------------------------------------------------


def test_a_new_version_inherits_the_region_and_calibrates_for_itself(store: ModelStore) -> None:
    operations, first = Operations(store), loaded(store)
    operations.record(first, lambda before: revised(first, before, author="ann", rate=0.5, region=half(left=True)))
    other = make(SMALL.model_copy(update={"sigma": 5.0}))
    assert operations.publish(other, author="bob") == store.active(CATEGORY) == 2
    [inherited] = operations.history(CATEGORY, 2)
    assert (inherited.number, inherited.author) == (1, "bob")
    assert inherited.region_of_interest == half(left=True)
    rate = other.operating_point.false_reject_rate
    assert inherited.operating_point == other.operating_point_for(rate, half(left=True))
    assert "version 1, operation 1" in inherited.note


def test_a_region_leaves_the_invalidity_threshold_of_the_new_version(store: ModelStore) -> None:
    operations, first = Operations(store), loaded(store)
    operations.record(first, lambda before: revised(first, before, author="ann", region=half(left=True)))
    point = first.operating_point.model_copy(update={"invalidity_threshold": 1.5})
    operations.publish(make(operating_point=point))
    assert operations.in_force(loaded(store, 2)).operating_point.invalidity_threshold == 1.5


def test_a_version_without_a_region_hands_on_nothing(store: ModelStore) -> None:
    operations, first = Operations(store), loaded(store)
    operations.record(first, lambda before: revised(first, before, author="ann", rate=0.5))
    assert operations.publish(make(), activate=False) == 2
    assert operations.history(CATEGORY, 2) == []
    assert store.active(CATEGORY) == 1


def test_the_first_version_of_a_category_is_published(tmp_path: Path) -> None:
    assert Operations(ModelStore(tmp_path / "new")).publish(make()) == 1


# --- what a threshold set by hand vouches for -----------------------------------------------------------------------


def test_the_rate_of_a_threshold_is_the_smallest_that_would_set_it_as_low() -> None:
    calibration = make().calibration
    for rank, score in enumerate(sorted(calibration.image_scores), start=1):
        rate = calibration.rate_of(score)
        assert rate == pytest.approx((len(calibration) + 1 - rank) / (len(calibration) + 1))
        assert calibration.operating_point(rate).image_threshold == score
    assert calibration.rate_of(np.inf) == calibration.smallest_rate
    assert calibration.rate_of(-np.inf) == pytest.approx(len(calibration) / (len(calibration) + 1))


@pytest.mark.parametrize("region", [None, half(left=True)], ids=["everywhere", "in a region"])
@pytest.mark.parametrize("moved", ["image_threshold", "pixel_threshold"])
def test_thresholds_set_by_hand_are_told_from_those_of_a_rate(
    store: ModelStore, region: RegionOfInterest | None, moved: str
) -> None:
    detector = loaded(store)
    derived = operation(detector, region, 0.4)
    assert not set_by_hand(detector, derived)
    assert not set_by_hand(detector, detector.own_operation)
    point = derived.operating_point
    other = point.model_copy(update={moved: getattr(point, moved) + 0.001})
    assert set_by_hand(detector, derived.model_copy(update={"operating_point": other}))
