"""The study of sizes: every width with every density, compared with the largest of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.compression import Setting
from benchmarks.embedded import Embedded
from benchmarks.sizes import Candidate, compare, report, settings, study
from tests.benchmarks.tiny import make_data, make_detector

WIDTHS = (2, 16)


def test_every_width_is_compared_with_the_largest(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    grounds = [
        Embedded(make_detector(data, tmp_path / f"run-{width}", width), data, tmp_path / f"width-{width}", part=600)
        for width in WIDTHS
    ]
    wanted = [Setting("random", 50), Setting("random", 600)]
    looks = []
    found = study(grounds, wanted, lambda: looks.append(1))
    assert list(found) == [Candidate(width, setting) for width in WIDTHS for setting in wanted]
    assert looks
    lines = {line["candidate"]: line for line in compare({"tile": found})}
    assert set(lines) == {"width-2-random-50", "width-2-random-600", "small-random-50", "small-random-600"}
    [largest] = [name for name, line in lines.items() if line["largest"]]
    assert largest == "small-random-600"
    assert lines[largest]["categories"]["tile"]["pixel_change_interval"] == [0, 0]
    assert (lines[largest]["kept"], lines[largest]["sure"]) == (True, True)
    for line in lines.values():
        low, high = line["categories"]["tile"]["pixel_change_interval"]
        assert low <= line["categories"]["tile"]["pixel_change"] <= high


def made(change: float, spread: float, share: float = 1.0) -> dict[str, object]:
    areas = dict.fromkeys(("image", "pixel"), 0.9 + change)
    samples = {f"{kind}_samples": [0.9 + change - spread, 0.9 + change + spread] for kind in areas}
    return {**areas, **samples, "milliseconds": 10.0, "share_of_reference": share}


def test_what_is_kept_and_what_is_sure() -> None:
    best, near, unsure, far = (Candidate(width, Setting("random", 10)) for width in (64, 32, 16, 8))
    cells = {best: made(0, 0, 4), near: made(-0.002, 0.001, 2), unsure: made(-0.004, 0.01), far: made(-0.01, 0, 0.5)}
    lines = compare({"bottle": cells, "pill": {**cells, near: made(-0.004, 0.0005, 2)}})
    assert [line["candidate"].split("-")[0] for line in lines] == ["width", "small", "base", "large"]
    assert [line["kept"] for line in lines] == [False, True, True, True]
    assert [line["sure"] for line in lines] == [False, False, True, True]
    assert lines[2]["worst_change"] == -0.4
    [row] = [row for row in report(lines).splitlines() if "base-random-10" in row]
    assert [cell.strip() for cell in row.split("|")][2:4] == ["10", "2.00"]
    assert "-0.40 (" in row


def test_every_density_once() -> None:
    wanted = settings((1024, 2048), (0, 64))
    assert len(wanted) == len(set(wanted)) == 1 + 2 * 2
