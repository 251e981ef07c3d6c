"""``plumbline models repeatability``: the gauge study of a detector, as an auditor knows it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import UsageError
from cli.loading import chosen_version, load_detector, operation_in_force
from cli.options import add_common, add_version
from cli.progress import count_bar

if TYPE_CHECKING:
    from training.gauge import GaugeStudy
    from training.repeatability import Agreement

_MEANINGS = {
    "EV": "repeatability, within a part",
    "AV": "reproducibility, operators",
    "INT": "operators by parts",
    "GRR": "gauge in total",
    "PV": "part to part",
    "TV": "total",
}
_UNDECIDED_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments besides the category and the store."""
    shots = parser.add_mutually_exclusive_group(required=True)
    shots.add_argument("--shots", type=Path, metavar="FOLDER", help="images: PART/SHOT.png, or PART/OPERATOR/SHOT.png")
    shots.add_argument(
        "--inspections", type=Path, metavar="CSV", help="what GET /v1/inspections?format=csv gave, with parts"
    )
    parser.add_argument(
        "--parts-pattern",
        metavar="REGEX",
        help="with --shots: finds the part in a file's path, as group 'part', and the operator as group 'operator'",
    )
    parser.add_argument(
        "--operators", metavar="COLUMN", help="with --inspections: the column that tells who took a shot: caller, say"
    )
    add_version(parser)
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and keep the figures beside the version."""
    from models.store import ModelStore
    from training import repeatability

    if options.parts_pattern and options.inspections:
        raise UsageError("--parts-pattern is for --shots: inspections name their parts")
    if options.operators and options.shots:
        raise UsageError("--operators is for --inspections; shots tell operators by folders or --parts-pattern")
    if options.shots:
        files = repeatability.find_shots(options.shots, options.parts_pattern)
        detector = load_detector(options, options.category)
        operation = operation_in_force(options, detector)
        with count_bar() as bar:
            shots = repeatability.score_shots(detector, operation, files, bar)
        threshold = operation.operating_point.image_threshold
        assert detector.version is not None  # it came from the store
        version = detector.version
    else:
        version = chosen_version(options, options.category)
        shots, threshold = repeatability.read_inspections(
            options.inspections, options.category, version, options.operators
        )
    gauge, verdicts = repeatability.study(shots, threshold)
    facts = {
        "category": options.category,
        "version": version,
        "threshold": threshold,
        **repeatability.facts(gauge, verdicts),
    }
    ModelStore(options.models).record(options.category, version, "repeatability", facts)
    _print(gauge, verdicts, threshold)
    return facts


def _print(gauge: GaugeStudy, verdicts: Agreement, threshold: float) -> None:
    operators = f", {gauge.operators} operators" if gauge.operators else ""
    print(f"{gauge.measurements} shots of {gauge.parts} parts{operators}; mean score {gauge.mean:.4f}")
    print(f"\n{'source':14} {'DF':>4} {'SS':>12} {'MS':>12} {'F':>9} {'p':>7}")
    for source in gauge.sources:
        tested = "" if source.f is None else f" {source.f:9.3f} {source.p_value:7.4f}"
        print(f"{source.name:14} {source.degrees:4} {source.sum_of_squares:12.6g} {source.mean_square:12.6g}{tested}")
    if gauge.pooled:
        print("the interaction is not significant and counts as repeatability")
    print(f"\n{'':4} {'':29} {'deviation':>10} {'6 sigma':>10} {'%study':>7} {'%contr.':>8} {'%tol.':>7}")
    for one in gauge.components:
        tolerance = "-" if one.tolerance_percent is None else f"{one.tolerance_percent:.1f}"
        print(
            f"{one.name:4} {_MEANINGS[one.name]:29} {one.deviation:10.6f} {one.study_variation:10.6f} "
            f"{one.study_percent:7.1f} {one.contribution_percent:8.1f} {tolerance:>7}"
        )
    low, high = gauge.repeatability_interval
    categories = "-" if gauge.distinct_categories is None else gauge.distinct_categories
    print(f"distinct categories (ndc): {categories}; EV with 90 % confidence between {low:.6f} and {high:.6f}")
    print(f"tolerance: up to the threshold {threshold:.4f}, twice the distance of the mean from it")
    low, high = verdicts.flipped_interval
    share = verdicts.flipped / verdicts.parts
    kappa = "- (all verdicts are the same)" if verdicts.kappa is None else f"{verdicts.kappa:.3f}"
    print(
        f"verdicts: {verdicts.flipped} of {verdicts.parts} parts have more than one ({share:.1%}, 90 % interval "
        f"{low:.1%} to {high:.1%}); Fleiss' kappa {kappa}"
    )
    for part, counts in list(verdicts.undecided.items())[:_UNDECIDED_SHOWN]:
        print(f"  {part}: {', '.join(f'{number} {verdict}' for verdict, number in sorted(counts.items()))}")
