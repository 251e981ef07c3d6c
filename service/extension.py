"""A new version out of the active one and inspections that a person found good: false alarms join the bank."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from models.detector import Detector
from models.extension import NotExtendable, check_extendable, extension_steps
from models.images import ImageError, decode_image
from service.admission import problems
from service.errors import EXTENSION_UNDER_WAY, INSPECTIONS_UNUSABLE, NOT_EXTENDABLE, ProblemError
from service.inspection import Service, in_pool
from service.records.reviewed import Reviewed, reviewed
from service.records.sink import Records

_MOST_NAMED = 5


async def extend_active(
    service: Service, records: Records, category: str, ids: Sequence[UUID], author: str
) -> tuple[int, Detector, int]:
    """Publish a version that has the windows of reviewed inspections in its bank; it does not become active.

    Scores go on meanwhile: the worker looks at one image between theirs.

    Returns:
        The version's number, the detector as it was published, and the number of the one that it came from.

    Raises:
        ProblemError: the category, the inspections or the store are not such that this can be done.
    """
    if service.extending.locked():
        raise ProblemError(
            EXTENSION_UNDER_WAY, "a version is being made already, and only one is at a time; retry then"
        )
    async with service.extending:
        served = service.registry.active(category)
        try:
            check_extendable(served.detector)
        except NotExtendable as error:
            raise ProblemError(NOT_EXTENDABLE, str(error)) from error
        await service.registry.check_writable(category)
        chosen = await records.read(partial(_chosen, records, category, ids))
        inputs = [await in_pool(service, partial(_placed, service, served.detector, one)) for one in chosen]
        source = {
            "inspections": [str(one.id) for one in chosen],
            "image_sha256": [one.image_sha256 for one in chosen],
            "author": author,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        steps = extension_steps(served.detector, np.stack(inputs), source, served.operation.operating_point)
        made = await _made(service, steps)
        version = await service.registry.publish(made, author)
        return version, made, served.version


def _chosen(records: Records, category: str, ids: Sequence[UUID]) -> list[Reviewed]:
    with records.database.begin() as connection:
        found = {one.id: one for one in reviewed(connection, records.pictures.folder, ids=ids)}
    obstacles = [(one, reason) for one in ids if (reason := _obstacle(found.get(one), category)) is not None]
    if obstacles:
        named = "; ".join(f"{one} {reason}" for one, reason in obstacles[:_MOST_NAMED])
        raise ProblemError(INSPECTIONS_UNUSABLE, f"{len(obstacles)} of {len(ids)} inspections cannot be used: {named}")
    return [found[one] for one in ids]


def _obstacle(inspection: Reviewed | None, category: str) -> str | None:
    if inspection is None:
        return "is not recorded"
    if inspection.category != category:
        return "is of another category"
    if inspection.review != "good":
        return "has not been reviewed good" if inspection.review is None else "was last reviewed defective"
    return None if inspection.image is not None else "has no image kept"


def _placed(service: Service, detector: Detector, inspection: Reviewed) -> NDArray[np.uint8]:
    assert inspection.image is not None
    try:
        image = decode_image(Path(inspection.image).read_bytes(), max_pixels=service.settings.max_pixels)
    except (OSError, ImageError) as error:
        detail = f"the image of inspection {inspection.id} cannot be read any more; leave it out"
        raise ProblemError(INSPECTIONS_UNUSABLE, detail) from error
    pixels, _ = detector.place(image)
    return pixels


async def _made(service: Service, steps: Generator[None, None, Detector]) -> Detector:
    def step() -> Detector | None:
        try:
            next(steps)
        except StopIteration as end:
            made: Detector = end.value
            return made
        return None

    with problems(service):
        while (made := (await service.worker.run(step)).value) is None:
            pass
    return made
