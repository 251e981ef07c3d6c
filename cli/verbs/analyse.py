"""Run one of the paper's ablations and analyses: what one setting does to the figures of a semantic data set."""

from __future__ import annotations

import argparse
from typing import Any

from cli.studies import add_study, carry_out, chosen, names, one, size_of, title


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("analysis", metavar="ANALYSIS", help="which; docs/analysis.md lists them")
    parser.add_argument("--dataset", default="fashion-mnist", help="as of plumbline reproduce (default: %(default)s)")
    parser.add_argument("--classes", type=names, help="which are normal in turn, by name (default: all)")
    parser.add_argument("--methods", type=names, help="representations (default: all of the analysis)")
    parser.add_argument("--values", type=names, help="of the setting that is varied (default: all of the analysis)")
    add_study(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, and write the table of all that is there.

    Raises:
        PartlyFailed: where a training failed or all were interrupted; what is finished is in the table.
    """
    from training.analysis import report
    from training.analysis.definitions import ANALYSES, CLASSIFIERS
    from training.analysis.protocol import Variations
    from training.reproduction.datasets import DATASETS
    from training.reproduction.report import to_json
    from training.reproduction.settings import SEMANTIC
    from training.reproduction.study import Study

    name, dataset = one("ANALYSIS", options.analysis, ANALYSES), one("--dataset", options.dataset, DATASETS)
    analysis = ANALYSES[name]
    points = analysis.points(
        chosen("--methods", options.methods, analysis.methods), chosen("--values", options.values, analysis.values)
    )
    protocol = Variations(
        options.data,
        size_of(SEMANTIC, options),
        chosen("--classes", options.classes, DATASETS[dataset].classes),
        dataset,
    )
    study = Study(
        protocol,
        tuple(dict.fromkeys(point.variant for point in points)),
        tuple(CLASSIFIERS),  # every one, so that no other analysis has to train the same again
        options.seeds or protocol.size.seeds,
        options.out,
        options.keep_checkpoints,
    )

    def tabulate() -> dict[str, Any]:
        rows = report.tabulate(protocol, name, points, study.cells())
        if rows:
            report.write(study.folder, name, rows, f"{name}: {title(study, options)}")
            print(report.markdown(name, rows))
        return {
            "table": [to_json(row) for row in rows],
            "correlations": [line._asdict() for line in report.correlations(name, rows)],
        }

    return carry_out(study, options, tabulate)
