"""How well a detector repeats itself: shots of the same parts, their scores as a gauge study, and their verdicts."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from models.detector import Detector
from models.images import EXTENSIONS, ImageError, read_image
from models.operation import Operation
from training.data import DataError
from training.gauge import INTERVAL, GaugeStudy, gauge_study

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ShotFile:
    """An image file; ``operator`` is who or what station took it, None where that is not told."""

    path: Path
    part: str
    operator: str | None


@dataclass(frozen=True)
class Shot:
    """One inspection of one part."""

    part: str
    operator: str | None
    image_score: float
    verdict: str


@dataclass(frozen=True)
class Agreement:
    """Whether the verdict is the part's or the shot's.

    Attributes:
        parts: those with two shots at least.
        flipped: parts with more than one verdict.
        flipped_interval: of the share of such parts, 90 % (Clopper and Pearson).
        kappa: Fleiss' kappa over verdicts, 1 where every part has one; None where all parts have the same.
        undecided: the parts that flipped, by name, with how often each verdict came.
    """

    parts: int
    flipped: int
    flipped_interval: tuple[float, float]
    kappa: float | None
    undecided: dict[str, dict[str, int]]


def find_shots(folder: Path, pattern: str | None = None) -> list[ShotFile]:
    """The image files under a folder, and which part each shows.

    Args:
        pattern: a regular expression that is searched in every file's path under the folder; its group ``part`` names
            the part, its group ``operator``, if there is one, who took the shot. None for a folder a part, in which a
            folder an operator may be: PART/SHOT.png or PART/OPERATOR/SHOT.png.

    Raises:
        DataError: there is no image, the pattern is none, or a file does not tell its part.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    files = [path for path in files if not any(name.startswith(".") for name in path.relative_to(folder).parts)]
    if not files:
        raise DataError(f"{folder} holds no image; expected are shots in a folder for each part")
    if pattern is None:
        shots = [_by_folder(path, folder) for path in files]
    else:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise DataError(f"{pattern!r} is no regular expression: {error}") from error
        if "part" not in expression.groupindex:
            raise DataError(f"{pattern!r} has no group named part; an example: '(?P<part>[^_]+)_.*'")
        shots = [_by_pattern(path, folder, expression) for path in files]
    if len({shot.operator is None for shot in shots}) > 1:
        odd = next(shot.path for shot in shots if shot.operator is None)
        raise DataError(f"{odd} has no operator, but others have: tell it of all shots or of none")
    return shots


def read_inspections(path: Path, category: str, version: int, operators: str | None = None) -> tuple[list[Shot], float]:
    """Inspections with a part, from a CSV file as ``GET /v1/inspections?format=csv`` gives it.

    An image that was sent more than once for a part, for its heatmap say, is one shot.

    Args:
        category: the one whose inspections count.
        version: the one by which they must be.
        operators: the column that tells who took a shot, such as ``caller``; None where that does not matter.

    Returns:
        The shots, and the image threshold that they were judged by.

    Raises:
        DataError: a column is missing, a cell is no number, or nothing is left.
    """
    needed = ["category", "version", "operation", "part", "image_sha256", "image_score", "image_threshold", "verdict"]
    needed += [] if operators is None else [operators]
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path} has no column {', '.join(missing)}; it needs {', '.join(needed)}")
        rows = [row for row in reader if row["category"] == category and row["part"]]
    by_version = [row for row in rows if row["version"] == str(version)]
    if not by_version:
        others = ", ".join(sorted({row["version"] or "" for row in rows})) or "none"
        raise DataError(f"{path} has no inspection of {category} version {version} with a part; versions: {others}")
    if len(operations := sorted({row["operation"] or "" for row in by_version})) > 1:
        raise DataError(
            f"{path}: version {version} decided by operations {', '.join(operations)}, under which a verdict is not "
            "the same; keep the inspections of one"
        )
    first = {(row["part"], row["image_sha256"]): row for row in reversed(by_version)}.values()
    try:
        shots = [
            Shot(row["part"], row[operators] if operators else None, float(row["image_score"]), row["verdict"])
            for row in first
        ]
        return shots, float(by_version[0]["image_threshold"])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def score_shots(
    detector: Detector, operation: Operation, files: Sequence[ShotFile], progress: Progress | None = None
) -> list[Shot]:
    """Inspect every shot.

    Raises:
        DataError: a file is no readable image.
    """
    shots = []
    for number, file in enumerate(files, 1):
        try:
            [prediction] = detector.predict([read_image(file.path)], operation)
        except ImageError as error:
            raise DataError(f"{error}; mend or remove the file") from error
        shots.append(Shot(file.part, file.operator, prediction.image_score, str(prediction.verdict)))
        if progress:
            progress("shots", number, len(files))
    return shots


def study(shots: Sequence[Shot], threshold: float) -> tuple[GaugeStudy, Agreement]:
    """The gauge study of the scores, with the threshold as its upper limit, and the agreement of the verdicts.

    Raises:
        GaugeError: too few parts, operators or shots.
    """
    parts = [shot.part for shot in shots]
    operators = [shot.operator for shot in shots if shot.operator is not None]
    gauge = gauge_study([shot.image_score for shot in shots], parts, operators or None, threshold)
    return gauge, agreement(parts, [shot.verdict for shot in shots])


def agreement(parts: Sequence[str], verdicts: Sequence[str]) -> Agreement:
    """How far several verdicts on the same part agree.

    Fleiss' kappa (Psychological Bulletin 76, 1971); where parts have unequal numbers of shots, each part counts the
    same in the agreement observed, and each shot in that expected by chance.
    """
    counts: dict[str, Counter[str]] = {}
    for part, verdict in zip(parts, verdicts, strict=True):
        counts.setdefault(part, Counter())[verdict] += 1
    repeated = {part: found for part, found in counts.items() if found.total() > 1}
    undecided = {part: dict(found) for part, found in repeated.items() if len(found) > 1}
    total = Counter[str]()
    for found in repeated.values():
        total += found
    chance = sum((number / total.total()) ** 2 for number in total.values())
    observed = [
        sum(number * (number - 1) for number in found.values()) / (found.total() * (found.total() - 1))
        for found in repeated.values()
    ]
    return Agreement(
        parts=len(repeated),
        flipped=len(undecided),
        flipped_interval=_share_interval(len(undecided), len(repeated)),
        kappa=None if len(total) < 2 else float((np.mean(observed) - chance) / (1 - chance)),
        undecided=undecided,
    )


def facts(gauge: GaugeStudy, verdicts: Agreement) -> dict[str, Any]:
    """Both as JSON."""
    return {
        **asdict(gauge),
        "sources": [{**asdict(source), "mean_square": source.mean_square} for source in gauge.sources],
        "verdicts": asdict(verdicts),
    }


def _by_folder(path: Path, folder: Path) -> ShotFile:
    *folders, _ = path.relative_to(folder).parts
    if len(folders) not in (1, 2):
        raise DataError(f"{path} is not in {folder}/PART or {folder}/PART/OPERATOR; or tell parts by a pattern")
    return ShotFile(path, folders[0], folders[1] if len(folders) == 2 else None)


def _by_pattern(path: Path, folder: Path, expression: re.Pattern[str]) -> ShotFile:
    name = path.relative_to(folder).as_posix()
    found = expression.search(name)
    if found is None or not found["part"]:
        raise DataError(f"{name!r} does not tell its part by {expression.pattern!r}")
    return ShotFile(path, found["part"], found.groupdict().get("operator"))


def _share_interval(count: int, total: int) -> tuple[float, float]:
    tail = (1 - INTERVAL) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(1 - tail, count + 1, total - count))
    return low, high
