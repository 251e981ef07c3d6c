"""List, show, verify and activate trained versions, and go back to earlier ones."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cli.errors import UsageError
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
        ("verify", _verify, "check every file of a version against its SHA-256"),
    ):
        sub = verbs.add_parser(name, help=help_line, description=help_line)
        if action is not _list:
            sub.add_argument("category", metavar="CATEGORY")
        if action in (_show, _activate, _shadow, _verify):
            optional = action is not _activate
            sub.add_argument(
                "version_number", metavar="VERSION", type=positive_integer, nargs="?" if optional else None
            )
        add_models(sub)
        add_json(sub)
        sub.set_defaults(action=action)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-verb."""
    result: dict[str, Any] = options.action(options)
    return result


def _list(options: argparse.Namespace) -> dict[str, Any]:
    from models.store import ModelStore

    store = ModelStore(options.models)
    found = {
        category: {"versions": store.versions(category), "active": store.active(category)}
        for category in store.categories()
    }
    for category, entry in found.items():
        versions = " ".join(f"[{n}]" if n == entry["active"] else str(n) for n in store.versions(category))
        print(f"{category:24} {versions}")
    if not found:
        print(f"{options.models} holds no trained category")
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


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from models.artifact import verify
    from models.store import ModelStore

    version = chosen_version(options, options.category)
    manifest = verify(ModelStore(options.models).folder(options.category, version))
    print(f"{options.category}: version {version} is whole, {len(manifest.files)} files")
    return {"category": options.category, "version": version, "files": manifest.files}
