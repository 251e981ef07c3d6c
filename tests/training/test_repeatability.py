"""Which part a shot is of, and whether its verdicts agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import binom

from training.data import DataError
from training.repeatability import agreement, find_shots, read_inspections

HEAD = "category,version,operation,part,image_sha256,image_score,image_threshold,verdict,caller\n"


def test_fleiss_kappa_of_the_known_example() -> None:
    """Ten subjects, 14 raters, five categories: kappa 0.210 (Wikipedia, "Fleiss' kappa")."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    verdicts = [
        (str(part), str(kind)) for part, row in enumerate(table) for kind, n in enumerate(row) for _ in range(n)
    ]
    found = agreement([part for part, _ in verdicts], [kind for _, kind in verdicts])
    assert found.kappa == pytest.approx(0.210, abs=5e-4)
    assert (found.parts, found.flipped) == (10, 9)


def test_verdicts_that_agree_and_parts_that_do_not() -> None:
    assert agreement(list("aabb"), ["good", "good", "defective", "defective"]).kappa == pytest.approx(1)
    assert agreement(list("aabb"), ["good"] * 4).kappa is None
    assert agreement(list("aabb"), ["good", "defective"] * 2).kappa == pytest.approx(-1)
    found = agreement(list("aaabbc"), ["good", "good", "review", "good", "good", "defective"])
    assert (found.parts, found.flipped, found.undecided) == (2, 1, {"a": {"good": 2, "review": 1}})
    low, high = found.flipped_interval  # of a binomial with 2 draws, of which 1 came or more, or 1 or fewer
    assert (binom.sf(0, 2, low), binom.cdf(1, 2, high)) == pytest.approx((0.05, 0.05))
    assert agreement(list("aabb"), ["good"] * 4).flipped_interval == pytest.approx((0, 1 - 0.05**0.5))
    assert agreement(list("aabb"), ["good", "review"] * 2).flipped_interval == pytest.approx((0.05**0.5, 1))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_parts_and_operators_by_folder(tmp_path: Path) -> None:
    touch(tmp_path, "p1/a.png", "p1/b.jpg", "p2/a.png", "p1/note.txt", "p1/.hidden.png")
    assert [(shot.part, shot.operator) for shot in find_shots(tmp_path)] == [("p1", None), ("p1", None), ("p2", None)]
    touch(tmp_path / "two", "p1/left/a.png", "p1/right/a.png")
    assert [(shot.part, shot.operator) for shot in find_shots(tmp_path / "two")] == [("p1", "left"), ("p1", "right")]


def test_parts_and_operators_by_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "exp1_num_7.jpg", "exp2_num_7.jpg", "exp1_num_8.jpg")
    found = find_shots(tmp_path, r"(?P<operator>exp\d+)_num_(?P<part>\d+)")
    assert [(shot.part, shot.operator) for shot in found] == [("7", "exp1"), ("8", "exp1"), ("7", "exp2")]


@pytest.mark.parametrize(
    ("files", "pattern", "mention"),
    [
        ((), None, "no image"),
        (("a.png",), None, "PART"),
        (("p/o/x/a.png",), None, "PART"),
        (("p/o/a.png", "p/a.png"), None, "no operator"),
        (("a.png",), "(", "regular expression"),
        (("a.png",), "a", "group named part"),
        (("a.png",), "(?P<part>b)", "a.png"),
    ],
)
def test_files_that_do_not_tell_their_part(
    tmp_path: Path, files: tuple[str, ...], pattern: str | None, mention: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=mention):
        find_shots(tmp_path, pattern)


def test_inspections_of_one_version_count_each_image_once(tmp_path: Path) -> None:
    path = tmp_path / "inspections.csv"
    path.write_text(
        HEAD
        + "tile,2,0,p1,aa,0.5,0.9,good,left\n"
        + "tile,2,0,p1,aa,0.5,0.9,good,right\n"  # its heatmap, for somebody else
        + "tile,2,0,p1,bb,0.6,0.9,good,right\n"
        + "tile,2,0,,cc,0.7,0.9,good,left\n"
        + "tile,1,0,p1,dd,0.7,0.9,good,left\n"
        + "cap,2,0,p1,ee,0.7,0.9,good,left\n"
    )
    shots, threshold = read_inspections(path, "tile", 2)
    assert threshold == 0.9
    assert sorted((shot.part, shot.operator, shot.image_score) for shot in shots) == [
        ("p1", None, 0.5),
        ("p1", None, 0.6),
    ]
    shots, _ = read_inspections(path, "tile", 2, "caller")
    assert sorted((shot.image_score, shot.operator) for shot in shots) == [(0.5, "left"), (0.6, "right")]


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        ("part,score\n", "no column category"),
        (HEAD + "tile,1,0,p1,aa,0.5,0.9,good,left\n", "versions: 1"),
        (HEAD + "tile,2,0,p1,aa,0.5,0.9,good,left\ntile,2,1,p1,bb,0.5,0.9,good,left\n", "operations 0, 1"),
        (HEAD + "tile,2,0,p1,aa,high,0.9,good,left\n", "high"),
    ],
)
def test_inspections_that_cannot_be_used(tmp_path: Path, content: str, mention: str) -> None:
    path = tmp_path / "inspections.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=mention):
        read_inspections(path, "tile", 2)
