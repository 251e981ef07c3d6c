"""What half precision does to AUROC: encoder, bank and scores in it, against the same detector in float32, paired.

python -m benchmarks.precision bottle pill --data DATA --models MODELS --out precision --json

The encoder is the trained one; bank and score maps are made anew in each precision, the bank of the same windows. Each
line is kept when it is finished: run again, it goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.compression import KINDS, Setting, areas, changed, fitted, say
from benchmarks.detectors import load_active
from benchmarks.embedded import Embedded, find_data, points, study_parser
from benchmarks.machine import machine
from models.detector import Detector
from models.device import resolve_device, set_threads
from models.inference import FLOAT32, InferencePlan
from models.scan import by_plan
from training.bootstrap import resampled

BANK = 4096  # embeddings of the bank


def planned(detector: Detector, plan: InferencePlan) -> Detector:
    """A detector's first member by another plan; its density and calibration are still of the old one."""
    made = detector.rescanned(by_plan(detector.scan.members[0], plan), detector.calibration_set)
    made.manifest = detector.manifest
    return made


def study(
    detector: Detector, data: Path, folder: Path, plan: InferencePlan, limit: int | None, size: int = BANK
) -> dict[str, Any]:
    """One category: AUROC in float32, and how much it changes by another plan, in points.

    Args:
        size: embeddings of the bank.
    """
    maps, cells = [], []
    for each in (FLOAT32, plan):
        say(f"{detector.category}: {each.name}")
        ground = Embedded(planned(detector, each), data, folder / each.precision / detector.category, limit, size)
        score_maps = ground.score_maps(fitted(ground, Setting("random", size)).scores)
        counts = resampled(ground.labels)
        cells.append(areas(ground.outcome(score_maps), counts))
        maps.append(score_maps)
    before, after = cells
    line: dict[str, Any] = {
        "category": detector.category,
        "plan": plan.name,
        "test_images": len(maps[0]),
        "spearman": round(float(spearmanr(maps[0].ravel(), maps[1].ravel()).statistic), 6),
        "largest_difference": float(np.abs(maps[1] - maps[0]).max()),
        "mean_difference": float((maps[1] - maps[0]).mean()),
    }
    return line | {f"{kind}_auroc": points(before[kind]) for kind in KINDS} | changed([after], before)


def main() -> None:
    """Study the active versions of categories."""
    parser = study_parser(__doc__, "precision")
    parser.add_argument("--precision", choices=("bfloat16", "float16"), help="default: what the device computes in")
    options = parser.parse_args()
    set_threads(options.threads)
    device = resolve_device(options.device)
    facts = machine(device)
    plan = InferencePlan(precision=options.precision or "auto").resolved(device)
    lines = []
    for category in options.categories:
        detector = load_active(options.models, category, options.device)
        lines.append(study(detector, find_data(options.data, category), options.out, plan, options.limit))
        print(json.dumps(lines[-1]), flush=True)
    if options.json:
        print(json.dumps({"lines": lines, "machine": facts}))


if __name__ == "__main__":
    main()
