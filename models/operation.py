"""The settings that a version runs with: numbered, recorded beside the version, changed without training."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from models.activations import system_user
from models.artifact import ArtifactError
from models.calibration import OperatingPoint
from models.region_of_interest import RegionOfInterest
from models.store import ModelStore
from models.store_errors import RecordExists, StoreError

if TYPE_CHECKING:
    from models.detector import Detector

_RECORD = "operation-"
ROUNDING = 1e-5  # of a threshold

Author = Annotated[str, Field(min_length=1, max_length=200)]
Note = Annotated[str, Field(max_length=1000)]


class UnknownOperation(StoreError, LookupError):
    """The version has no operation of that number."""


class Operation(BaseModel):
    """How a version decides at run time.

    Attributes:
        number: 0 for what the artifact itself holds; 1, 2, ... for what was recorded later, of which the last is in
            force.
        operating_point: thresholds and review band.
        region_of_interest: outside it nothing counts; None where all of the image does.
        author: who set it; None where the system could not tell.
        created: when.
        note: why, in the author's words.
        restores: the earlier operation of this version whose settings these are again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=0)
    operating_point: OperatingPoint
    region_of_interest: RegionOfInterest | None = None
    author: Author | None
    created: AwareDatetime
    note: Note = ""
    restores: int | None = Field(default=None, ge=0)


def revised(
    detector: Detector,
    before: Operation,
    *,
    author: str | None,
    note: str = "",
    rate: float | None = None,
    region: RegionOfInterest | Literal["as before"] | None = "as before",
) -> Operation:
    """An operation with thresholds set anew: for a false-reject rate, in a region of interest.

    Args:
        before: what it follows.
        rate: the false-reject rate; that of ``before`` if None.
        region: the region of interest; that of ``before`` if not given.

    Returns:
        The operation, its number still that of ``before``, and the invalidity threshold too. It has no review band: a
        band is in scores, which the new thresholds are not comparable with.

    Raises:
        ValueError: the calibration images cannot vouch for the rate.
    """
    within = before.region_of_interest if region == "as before" else region
    wanted = before.operating_point.false_reject_rate if rate is None else rate
    unchanged = {"invalidity_threshold": before.operating_point.invalidity_threshold}
    point = detector.operating_point_for(wanted, within).model_copy(update=unchanged)
    return Operation(
        number=before.number,
        operating_point=point,
        region_of_interest=within,
        author=author,
        created=datetime.now(UTC),
        note=note,
    )


def set_by_hand(detector: Detector, operation: Operation) -> bool:
    """Whether a threshold of an operation is another than its false-reject rate gives on the calibration images."""
    point = operation.operating_point
    derived = detector.operating_point_for(point.false_reject_rate, operation.region_of_interest)
    # With a region the map's is of maps made anew, which round by the machine.
    return not (
        math.isclose(point.image_threshold, derived.image_threshold, abs_tol=ROUNDING)
        and math.isclose(point.pixel_threshold, derived.pixel_threshold, abs_tol=ROUNDING)
    )


class Operations:
    """The operations of the versions in a model store; each is a record that is written once."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def history(self, category: str, version: int) -> list[Operation]:
        """What was recorded for a version, the oldest first; the last is in force.

        Raises:
            StoreError: there is no such version.
            ArtifactError: a record is damaged.
        """
        records = self._store.records(category, version)
        found = [_read(name, records[name]) for name in records if name.startswith(_RECORD)]
        return sorted(found, key=lambda operation: operation.number)

    def latest_number(self, category: str, version: int) -> int:
        """The number of the operation in force, had without reading it.

        Raises:
            StoreError: there is no such version.
        """
        names = self._store.record_names(category, version)
        numbers = [name.removeprefix(_RECORD) for name in names if name.startswith(_RECORD)]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def in_force(self, detector: Detector) -> Operation:
        """The last operation of a published detector's version, or the artifact's own where there is none.

        Raises:
            StoreError, ArtifactError: as ``history``.
        """
        assert detector.version is not None
        history = self.history(detector.category, detector.version)
        return history[-1] if history else detector.own_operation

    def record(self, detector: Detector, make: Callable[[Operation], Operation]) -> Operation:
        """Put a new operation in force; it holds for whoever asks for the one in force from now on.

        Args:
            detector: a published one.
            make: the new operation from the one in force; its number is set here. Called again where another process
                was first to record one.

        Raises:
            StoreError, ArtifactError: as ``history``.
            StoreReadOnly: this process may not write to the category.
            RecordExists: a folder or a link has the record's name.
        """
        assert detector.version is not None
        while True:
            latest = self.in_force(detector)
            operation = make(latest).model_copy(update={"number": latest.number + 1})
            try:
                self._store.record(detector.category, detector.version, *_written(operation), replace=False)
            except RecordExists:
                if self.in_force(detector).number == latest.number:
                    raise  # nobody was first: what has the name is no record
                continue
            return operation

    def restore(self, detector: Detector, number: int, *, author: str | None, note: str = "") -> Operation:
        """Put the settings of an earlier operation in force again; 0 are the artifact's own.

        Raises:
            UnknownOperation: there is none of that number.
            StoreError, ArtifactError: as ``record``.
        """
        assert detector.version is not None
        known = {
            operation.number: operation
            for operation in [detector.own_operation, *self.history(detector.category, detector.version)]
        }
        if number not in known:
            raise UnknownOperation(
                f"{detector.category!r} version {detector.version} has no operation {number}; there is "
                f"{', '.join(map(str, known))}"
            )
        changes = {"author": author, "created": datetime.now(UTC), "note": note, "restores": number}
        restored = known[number].model_copy(update=changes)
        return self.record(detector, lambda _: restored)

    def publish(self, detector: Detector, *, activate: bool = True, author: str | None = None) -> int:
        """Save a detector as its category's next version, which inherits the active version's region of interest.

        Its thresholds are its own: set for its own false-reject rate, from its own calibration images in that region.

        Args:
            author: who does; None for the user of this process.

        Returns:
            The version's number.

        Raises:
            StoreError, ArtifactError: as ``history`` and ``ModelStore.publish``.
        """
        records = {}
        if (source := self._active(detector.category)) is not None and source[1].region_of_interest is not None:
            version, operation = source
            own = detector.operating_point
            point = detector.operating_point_for(own.false_reject_rate, operation.region_of_interest)
            inherited = Operation(
                number=1,
                operating_point=point.model_copy(update={"invalidity_threshold": own.invalidity_threshold}),
                region_of_interest=operation.region_of_interest,
                author=author or system_user(),
                created=datetime.now(UTC),
                note=f"the region of interest of version {version}, operation {operation.number}",
            )
            records = dict([_written(inherited)])
        return self._store.publish(detector.category, detector.save, activate=activate, author=author, records=records)

    def _active(self, category: str) -> tuple[int, Operation] | None:
        """The active version, and the operation recorded last for it; None where there is none of either."""
        try:
            version = self._store.active(category)
        except (StoreError, ArtifactError):  # nothing is published, or the pointer is damaged: no reason not to publish
            return None
        history = self.history(category, version) if version is not None else []
        return (version, history[-1]) if version is not None and history else None


def _written(operation: Operation) -> tuple[str, dict[str, Any]]:
    return f"{_RECORD}{operation.number}", operation.model_dump(mode="json", exclude_defaults=True)


def _read(name: str, content: dict[str, Any]) -> Operation:
    try:
        operation = Operation.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(f"record {name} is damaged ({error}); restore it from a copy") from error
    if name != _written(operation)[0]:
        raise ArtifactError(f"record {name} is damaged (it holds operation {operation.number}); restore it from a copy")
    return operation
