"""More good images for a detector that is trained: their windows join the bank, and the thresholds are set anew.

Nothing is trained. What the encoder, the kernel's width and the test for images of something else learned stays; the
score of every image changes a little, so the calibration images are scored again and the thresholds follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration import Calibration, OperatingPoint
from models.calibration_set import CalibrationSet, calibrate
from models.densities.bank import BankDensity
from models.detector import Detector
from models.scan import Scan, combine

MOST_IMAGES = 200  # at once: every one adds all its windows to the bank


class NotExtendable(ValueError):
    """The detector, or the images, cannot be extended by; the message says why."""


def check_extendable(detector: Detector) -> None:
    """Refuse a detector that keeps no embeddings.

    Raises:
        NotExtendable: so.
    """
    if not all(isinstance(member.density, BankDensity) for member in detector.scan.members):
        name = detector.scan.configuration.density.name
        raise NotExtendable(
            f"{name} keeps no embeddings that more could join; kernel_density and nearest_neighbours do, for any other "
            "train again with the images"
        )


def extend(
    detector: Detector, inputs: NDArray[np.uint8], source: Mapping[str, Any], before: OperatingPoint | None = None
) -> Detector:
    """A detector whose bank has all windows of more good images beside its own.

    Args:
        inputs: (n, S, S, 3), images of good parts as ``detector.place`` gives them.
        source: where they are from, ready for JSON; kept with the detector.
        before: what is in force for ``detector``, as of ``Detector.rescanned``.

    Returns:
        A detector not yet saved, at the false-reject rate of ``before``, without its review band.

    Raises:
        NotExtendable: see ``extension_steps``.
    """
    steps = extension_steps(detector, inputs, source, before)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Detector = end.value
            return made


def extension_steps(
    detector: Detector, inputs: NDArray[np.uint8], source: Mapping[str, Any], before: OperatingPoint | None = None
) -> Generator[None, None, Detector]:
    """As ``extend``, in steps that each look at one image, for whoever has other work between them.

    Raises:
        NotExtendable: the detector keeps no embeddings, or there is no image, or more than ``MOST_IMAGES``.
    """
    check_extendable(detector)
    if not 1 <= len(inputs) <= MOST_IMAGES:
        raise NotExtendable(f"a bank is extended by 1 to {MOST_IMAGES} images at once, not by {len(inputs)}")
    embeddings: list[list[NDArray[np.float32]]] = [[] for _ in detector.scan.members]
    digest = hashlib.sha256(detector.data_fingerprint.encode())
    for pixels in inputs:
        digest.update(pixels.tobytes())
        for member, found in zip(detector.scan.members, embeddings, strict=True):
            found.append(member.embed(pixels[None]).flatten(0, 2).cpu().numpy())
        yield
    members = [_extended(*pair) for pair in zip(detector.scan.members, embeddings, strict=True)]
    scan = combine(members)
    parts: list[CalibrationSet] = []
    known = detector.calibration_set
    for number, content in enumerate(known.contents):
        parts.append(calibrate(scan, detector.geometry, known.inputs[number : number + 1], [content]))
        yield
    calibration_set = _joined(parts, known.inputs)
    extension = {**source, "of_version": detector.version, "images": len(inputs)}
    return detector.rescanned(
        scan,
        calibration_set,
        before,
        data_fingerprint=digest.hexdigest(),
        training={**detector.training, "extensions": [*detector.training.get("extensions", []), extension]},
    )


def _extended(member: Scan, embeddings: list[NDArray[np.float32]]) -> Scan:
    assert isinstance(member.density, BankDensity)
    density = member.density.extended(np.concatenate(embeddings))
    return Scan(member.configuration, member.encoder, density, member.device)


def _joined(parts: Sequence[CalibrationSet], inputs: NDArray[np.uint8]) -> CalibrationSet:
    scores = Calibration(
        np.concatenate([part.scores.image_scores for part in parts]),
        np.concatenate([part.scores.map_maxima for part in parts]),
    )
    score_maps = np.concatenate([part.score_maps for part in parts])
    summaries = np.concatenate([part.summaries for part in parts])
    return CalibrationSet(scores, score_maps, summaries, tuple(part.contents[0] for part in parts), inputs)
