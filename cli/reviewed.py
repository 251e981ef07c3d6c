"""``plumbline models extend`` and ``compare``: what people said of inspections, put to use."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from cli.errors import UsageError
from cli.loading import load_detector, operation_in_force, warn_of_thresholds_by_hand
from cli.options import add_common, add_version, positive_integer
from cli.progress import say

if TYPE_CHECKING:
    from models.prediction import Prediction
    from service.records.reviewed import Reviewed

_CHANGES_SHOWN = 10


def add_extend_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``extend`` besides the category and the store."""
    parser.add_argument("inspections", metavar="INSPECTION", type=UUID, nargs="+", help="ids, reviewed good")
    _add_records(parser)
    add_version(parser)
    add_common(parser)


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``compare`` besides the category and the store."""
    parser.add_argument("versions", metavar="VERSION", type=positive_integer, nargs=2, help="two of them")
    _add_records(parser)
    add_common(parser)


def extend(options: argparse.Namespace) -> dict[str, Any]:
    """Publish a version of the active one and of inspections; it does not become active."""
    import numpy as np

    from models.activations import system_user
    from models.extension import NotExtendable
    from models.extension import extend as extended
    from models.images import read_image
    from models.operation import Operations
    from models.store import ModelStore

    found = {one.id: one for one in _read(options, ids=options.inspections)}
    for wanted in options.inspections:
        one = found.get(wanted)
        if one is None or one.category != options.category or one.review != "good" or one.image is None:
            raise UsageError(
                f"inspection {wanted} cannot be used: it must be recorded, of {options.category}, last reviewed good, "
                "and its image kept"
            )
    chosen = list(found.values())
    detector = load_detector(options, options.category)
    store = ModelStore(options.models)
    store.check_writable(options.category)
    source = {
        "inspections": [str(one.id) for one in chosen],
        "image_sha256": [one.image_sha256 for one in chosen],
        "author": system_user(),
    }
    inputs = np.stack([detector.place(read_image(one.image))[0] for one in chosen if one.image is not None])
    operation = operation_in_force(options, detector)
    warn_of_thresholds_by_hand(detector, operation)
    try:
        made = extended(detector, inputs, source, operation.operating_point)
    except NotExtendable as error:
        raise UsageError(f"{options.category}: {error}") from error
    version = Operations(store).publish(made, activate=False)
    print(
        f"{options.category}: version {version} is version {detector.version} with {len(chosen)} more images, "
        f"{made.scan.members[0].density.samples} embeddings; compare the two, then activate it"
    )
    return {"category": options.category, "version": version, "based_on": detector.version, "images": len(chosen)}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Let two versions, as they would decide now, judge every reviewed inspection whose image is kept."""
    kept = [one for one in _read(options, category=options.category) if one.image is not None]
    if not kept:
        raise UsageError(
            f"no inspection of {options.category} is reviewed and has its image kept: review some "
            "(POST /v1/inspections/ID/review) while PLUMBLINE_KEEP_IMAGES keeps them"
        )
    results = {version: _judged(options, version, kept) for version in options.versions}
    banks = set[str]().union(*(result["in_bank"] for result in results.values()))
    fresh = [number for number, one in enumerate(kept) if str(one.id) not in banks]
    facts = [_facts(version, results[version]["predictions"], kept, fresh) for version in options.versions]
    first, second = (results[version]["predictions"] for version in options.versions)
    changed = [
        {"id": str(kept[n].id), "review": kept[n].review, "verdicts": [first[n].verdict, second[n].verdict]}
        for n in range(len(kept))
        if first[n].verdict != second[n].verdict
    ]
    _print(facts, changed, len(kept) - len(fresh))
    return {
        "category": options.category,
        "reviewed": len(fresh),
        "left_out": len(kept) - len(fresh),
        "versions": facts,
        "changed": changed,
    }


def _add_records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--records",
        type=Path,
        metavar="FOLDER",
        help="the service's folder of records (default: 'records' beside the models)",
    )
    parser.add_argument(
        "--records-url",
        default=os.environ.get("PLUMBLINE_RECORDS_URL") or None,
        help="its database, where that is not in the folder (default: PLUMBLINE_RECORDS_URL)",
    )


def _read(
    options: argparse.Namespace, *, category: str | None = None, ids: Sequence[UUID] | None = None
) -> list[Reviewed]:
    from service.records.database import SQLITE_FILE, DatabaseError, DatabaseUnavailable, database_in
    from service.records.pictures import PICTURES
    from service.records.reviewed import reviewed

    folder = options.records or options.models.absolute().parent / "records"
    if options.records_url is None and not (folder / SQLITE_FILE).is_file():
        raise UsageError(f"{folder} holds no {SQLITE_FILE}; name the service's folder of records with --records")
    try:
        database = database_in(folder, options.records_url)
        try:
            with database.begin() as connection:
                return reviewed(connection, folder / PICTURES, category=category, ids=ids)
        finally:
            database.close()
    except (DatabaseError, DatabaseUnavailable) as error:
        raise UsageError(f"the records cannot be read: {error}") from error


def _judged(options: argparse.Namespace, version: int, kept: Sequence[Reviewed]) -> dict[str, Any]:
    from models.images import read_image

    detector = load_detector(options, options.category, version)
    operation = operation_in_force(options, detector)
    say(f"version {version}: {len(kept)} images")
    predictions = [detector.predict([read_image(one.image)], operation)[0] for one in kept if one.image is not None]
    extensions = detector.training.get("extensions", [])
    return {"predictions": predictions, "in_bank": {one for part in extensions for one in part.get("inspections", [])}}


def _facts(
    version: int, predictions: Sequence[Prediction], kept: Sequence[Reviewed], fresh: Sequence[int]
) -> dict[str, Any]:
    import numpy as np
    from sklearn.metrics import roc_auc_score

    good = [n for n in fresh if kept[n].review == "good"]
    defective = [n for n in fresh if kept[n].review == "defective"]
    auroc = None
    if good and defective:
        labels = [kept[n].review == "defective" for n in fresh]
        auroc = float(roc_auc_score(labels, [predictions[n].image_score for n in fresh]))
    return {
        "version": version,
        "good": len(good),
        "false_rejects": sum(predictions[n].verdict != "good" for n in good),
        "defective": len(defective),
        "escapes": sum(predictions[n].verdict == "good" for n in defective),
        "auroc": auroc,
        "median_p_value": {
            name: float(np.median([predictions[n].p_value for n in which])) if which else None
            for name, which in (("good", good), ("defective", defective))
        },
    }


def _print(facts: Sequence[dict[str, Any]], changed: Sequence[dict[str, Any]], left_out: int) -> None:
    print(f"{'version':>7} {'good':>6} {'false rejects':>14} {'defective':>10} {'escapes':>8} {'AUROC':>7}")
    for one in facts:
        auroc = "-" if one["auroc"] is None else f"{100 * one['auroc']:.1f}"
        print(
            f"{one['version']:>7} {one['good']:>6} {one['false_rejects']:>14} {one['defective']:>10} "
            f"{one['escapes']:>8} {auroc:>7}"
        )
    if left_out:
        print(f"left out of these figures: {left_out} inspections that are in the bank of one of the two")
    print(f"{len(changed)} verdicts differ" + ("" if not changed else ":"))
    for change in changed[:_CHANGES_SHOWN]:
        before, after = change["verdicts"]
        print(f"  {change['id']}  reviewed {change['review']}: {before} -> {after}")
