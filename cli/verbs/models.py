"""List, show, verify, operate, measure, extend, compare and activate trained versions, and go back to earlier ones."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cli import repeatability, reviewed
from cli.errors import FAILED, PartlyFailed, UsageError, sentence
from cli.loading import chosen_version
from cli.options import add_json, add_models, positive_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's sub-verbs."""
    verbs = parser.add_subparsers(metavar="ACTION", required=True)
    for name, action, help_line in (
        ("list", _list, "every category, its versions and the active one"),
        ("show", _show, "the facts of a version and its records"),
        ("activate", _activate, "make a version the one that is served"),
        ("rollback", _rollback, "serve the version again that was active before"),
        ("history", _history, "which version became active when, and by whom"),
        ("shadow", _shadow, "let a version score beside the active one and only record; without a version, none"),
        ("operation", _operation, "how a version decides; with options, record how it decides from now on"),
        ("repeatability", repeatability.run, "gauge R&R of the score, and agreement of verdicts, from repeated shots"),
        ("extend", reviewed.extend, "publish a version with parts that were reviewed good in its bank"),
        ("compare", reviewed.compare, "how two versions decide on the parts that people have reviewed"),
        ("verify", _verify, "check every file of a version against its SHA-256"),
    ):
        sub = verbs.add_parser(name, help=help_line, description=help_line)
        if action is not _list:
            sub.add_argument("category", metavar="CATEGORY")
        if action in (_show, _activate, _shadow, _operation, _verify):
            optional = action is not _activate
            sub.add_argument(
                "version_number", metavar="VERSION", type=positive_integer, nargs="?" if optional else None
            )
        if action is _operation:
            _add_operation_arguments(sub)
        add_models(sub)
        if action is repeatability.run:
            repeatability.add_arguments(sub)
        elif action is reviewed.extend:
            reviewed.add_extend_arguments(sub)
        elif action is reviewed.compare:
            reviewed.add_compare_arguments(sub)
        else:
            add_json(sub)
        sub.set_defaults(action=action)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-verb."""
    result: dict[str, Any] = options.action(options)
    return result


def _list(options: argparse.Namespace) -> dict[str, Any]:
    from models.artifact import ArtifactError
    from models.store import ModelStore
    from models.store_errors import StoreError

    store = ModelStore(options.models)
    found: dict[str, dict[str, Any]] = {}
    for category in store.categories():
        try:
            versions, active = store.versions(category), store.active(category)
        except (ArtifactError, StoreError, OSError) as error:
            found[category] = {"error": sentence(error)}
            print(f"{category:24} {sentence(error)}")
        else:
            found[category] = {"versions": versions, "active": active}
            print(f"{category:24} {' '.join(f'[{n}]' if n == active else str(n) for n in versions)}")
    if not found:
        print(f"{options.models} holds no trained category")
    if failed := [category for category, entry in found.items() if "error" in entry]:
        message = f"{len(failed)} of {len(found)} categories cannot be read: {', '.join(failed)}"
        raise PartlyFailed(message, {"categories": found}, FAILED)
    return {"categories": found}


def _show(options: argparse.Namespace) -> dict[str, Any]:
    from models.artifact import read_manifest
    from models.store import ModelStore

    store = ModelStore(options.models)
    version = chosen_version(options, options.category)
    manifest = read_manifest(store.folder(options.category, version)).model_dump(mode="json")
    facts = {
        **manifest,
        "active": store.active(options.category) == version,
        "records": store.records(options.category, version),
    }
    if not options.json:
        print(json.dumps(facts, indent=2))
    return facts


def _activate(options: argparse.Namespace) -> dict[str, Any]:
    from models.store import ModelStore

    ModelStore(options.models).activate(options.category, options.version_number)
    print(f"{options.category}: version {options.version_number} is active")
    return {"category": options.category, "active": options.version_number}


def _rollback(options: argparse.Namespace) -> dict[str, Any]:
    from models.store import ModelStore

    store = ModelStore(options.models)
    version = store.previous(options.category)
    if version is None:
        raise UsageError(f"{options.category}: no other version was active before, so there is none to go back to")
    store.activate(options.category, version, rollback=True)
    print(f"{options.category}: version {version} is active again")
    return {"category": options.category, "active": version}


def _history(options: argparse.Namespace) -> dict[str, Any]:
    from models.store import ModelStore

    activations = ModelStore(options.models).activations(options.category)
    for entry in activations:
        how = "rolled back to" if entry.rollback else "activated"
        print(f"{entry.time:%Y-%m-%d %H:%M:%S} UTC  {how} version {entry.version}  {entry.author or '(not recorded)'}")
    if not activations:
        print(f"{options.category}: no activation is recorded")
    return {"category": options.category, "activations": [entry.model_dump(mode="json") for entry in activations]}


def _shadow(options: argparse.Namespace) -> dict[str, Any]:
    from models.store import ModelStore

    store, version = ModelStore(options.models), options.version_number
    if version is not None and version == store.active(options.category):
        raise UsageError(f"{options.category}: version {version} is the active one; its shadow must be another")
    store.set_shadow(options.category, version)
    print(f"{options.category}: {'no version' if version is None else f'version {version}'} is the shadow")
    return {"category": options.category, "shadow": version}


def _add_operation_arguments(parser: argparse.ArgumentParser) -> None:
    changes = parser.add_mutually_exclusive_group()
    changes.add_argument("--false-reject-rate", type=float, help="set both thresholds for this share of good parts")
    changes.add_argument(
        "--restore", type=int, metavar="N", help="take operation N's settings again; 0: the artifact's"
    )
    region = parser.add_mutually_exclusive_group()
    region.add_argument(
        "--region-of-interest", type=Path, metavar="PNG", help="count only where this mask is not black"
    )
    region.add_argument("--no-region-of-interest", action="store_true", help="count the whole image again")
    parser.add_argument("--note", default="", help="why, for the record")


def _operation(options: argparse.Namespace) -> dict[str, Any]:
    from models.activations import system_user
    from models.detector import Detector
    from models.images import read_mask
    from models.inference import FLOAT32
    from models.operation import Operations, revised
    from models.region_of_interest import RegionOfInterest
    from models.store import ModelStore

    store = ModelStore(options.models)
    operations = Operations(store)
    # Nothing is scanned, so by float32, which runs everywhere; its own plan may need a GPU or a compiler.
    folder = store.folder(options.category, chosen_version(options, options.category))
    detector = Detector.load(folder, "cpu", FLOAT32)
    author = system_user()
    changes: dict[str, Any] = {}
    if options.false_reject_rate is not None:
        changes["rate"] = options.false_reject_rate
    if options.region_of_interest:
        mask = read_mask(options.region_of_interest)
        try:
            changes["region"] = RegionOfInterest.of_mask(mask)
        except ValueError as error:
            raise UsageError(f"{options.region_of_interest}: {error}") from error
    elif options.no_region_of_interest:
        changes["region"] = None
    if options.restore is not None:
        if changes:
            raise UsageError("--restore takes all settings from one operation: give it alone")
        operation = operations.restore(detector, options.restore, author=author, note=options.note)
    elif changes:
        try:
            operation = operations.record(
                detector, lambda before: revised(detector, before, **changes, author=author, note=options.note)
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    else:
        operation = operations.in_force(detector)
    point, region = operation.operating_point, operation.region_of_interest
    print(
        f"{options.category}: version {detector.version}, operation {operation.number} by "
        f"{operation.author or '(not recorded)'}: image "
        f"threshold {point.image_threshold:.4f}, pixel threshold {point.pixel_threshold:.4f}, false-reject rate "
        f"{point.false_reject_rate:.2%}, region of interest "
        f"{f'{region.share:.1%} of the image' if region else 'all of the image'}"
    )
    return {
        "category": options.category,
        "version": detector.version,
        "operation": operation.model_dump(mode="json", exclude={"region_of_interest"}),
        "region_of_interest_share": region.share if region else None,
    }


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from models.artifact import verify
    from models.store import ModelStore

    version = chosen_version(options, options.category)
    manifest = verify(ModelStore(options.models).folder(options.category, version))
    print(f"{options.category}: version {version} is whole, {len(manifest.files)} files")
    return {"category": options.category, "version": version, "files": manifest.files}
