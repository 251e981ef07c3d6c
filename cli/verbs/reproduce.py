"""Measure the paper's tables again: any representation and classifier, the paper's figure beside each of ours."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cli.errors import UsageError
from cli.progress import say
from cli.studies import ALL, add_study, carry_out, chosen, names, one, size_of, title

if TYPE_CHECKING:
    from training.reproduction.protocol import Protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tables."""
    tables = parser.add_subparsers(metavar="TABLE", required=True)
    for name, action, help_line in (
        ("semantic", _semantic, "Tables 2, 5 and 7 to 11: one class of a data set against the others, whole images"),
        ("mvtec", _mvtec, "Table 12: defects on MVTec AD, detection and localization"),
    ):
        sub = tables.add_parser(name, help=help_line, description=help_line)
        if action is _semantic:
            sub.add_argument("--dataset", required=True, help="fashion-mnist, cifar10, cifar20, cats-vs-dogs or celeba")
            sub.add_argument("--classes", type=names, help="which are normal in turn, by name (default: all)")
        else:
            sub.add_argument("--categories", type=names, help="which (default: all that --data has)")
        sub.add_argument("--methods", type=names, help="representations (default: those of the paper)")
        sub.add_argument("--classifiers", type=names, help="one-class classifiers (default: the paper's)")
        add_study(sub)
        sub.set_defaults(action=action)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, and write the table of all that is there.

    Raises:
        PartlyFailed: where a training failed or all were interrupted; what is finished is in the table.
    """
    result: dict[str, Any] = options.action(options)
    return result


def _semantic(options: argparse.Namespace) -> dict[str, Any]:
    from training.reproduction.datasets import DATASETS
    from training.reproduction.semantic import Semantic
    from training.reproduction.settings import SEMANTIC

    dataset = one("--dataset", options.dataset, DATASETS)
    classes = chosen("--classes", options.classes, DATASETS[dataset].classes)
    return _reproduce(Semantic(options.data, size_of(SEMANTIC, options), classes, dataset), options)


def _mvtec(options: argparse.Namespace) -> dict[str, Any]:
    from training.data import DataError
    from training.mvtec import CATEGORIES, missing_categories
    from training.reproduction.defects import Defects
    from training.reproduction.settings import MVTEC

    missing = missing_categories(options.data)
    found = [category for category in CATEGORIES if category not in missing]
    if not found:
        raise DataError(
            f"{options.data} holds no category of MVTec AD, such as {CATEGORIES[0]}/train/good; plumbline data mvtec "
            "fetches them"
        )
    if missing:
        say(f"missing in {options.data}: {', '.join(missing)}")
    given = None if options.categories == [ALL] else options.categories  # all are all that are there
    categories = chosen("--categories", given, CATEGORIES, found)
    if absent := [category for category in categories if category in missing]:
        raise DataError(f"--categories {', '.join(absent)}: missing in {options.data}, which has {', '.join(found)}")
    return {**_reproduce(Defects(options.data, size_of(MVTEC, options), categories), options), "missing": missing}


def _reproduce(protocol: Protocol, options: argparse.Namespace) -> dict[str, Any]:
    from training.reproduction import report
    from training.reproduction.study import Study

    methods, classifiers = protocol.methods, protocol.classifiers
    papers = [[name for name, entry in table.items() if entry.paper] for table in (methods, classifiers)]
    study = Study(
        protocol,
        chosen("--methods", options.methods, methods, papers[0]),
        chosen("--classifiers", options.classifiers, classifiers, papers[1]),
        options.seeds or protocol.size.seeds,
        options.out,
        options.keep_checkpoints,
    )
    if not any(map(study.wanted, study.trials)):
        raise UsageError("none of --classifiers can score any of --methods: the rotation classifier needs its head")

    def tabulate() -> dict[str, Any]:
        lines = report.tabulate(protocol, study.cells())
        if lines:
            report.write(study.folder, lines, title(study, options))
            print(report.markdown(lines))
        return {"table": [report.to_json(line) for line in lines]}

    return carry_out(study, options, tabulate)
