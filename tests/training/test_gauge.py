"""Gauge R&R against the worked example of AIAG's manual, textbook formulas, and known truths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.gauge import GaugeError, GaugeStudy, gauge_study

# "Measurement Systems Analysis", AIAG, 4th edition, chapter III, section B: ten parts (columns), three appraisers with
# three trials each (rows).
AIAG = np.array(
    [
        [0.29, -0.56, 1.34, 0.47, -0.80, 0.02, 0.59, -0.31, 2.26, -1.36],
        [0.41, -0.68, 1.17, 0.50, -0.92, -0.11, 0.75, -0.20, 1.99, -1.25],
        [0.64, -0.58, 1.27, 0.64, -0.84, -0.21, 0.66, -0.17, 2.01, -1.31],
        [0.08, -0.47, 1.19, 0.01, -0.56, -0.20, 0.47, -0.63, 1.80, -1.68],
        [0.25, -1.22, 0.94, 1.03, -1.20, 0.22, 0.55, 0.08, 2.12, -1.62],
        [0.07, -0.68, 1.34, 0.20, -1.28, 0.06, 0.83, -0.34, 2.19, -1.50],
        [0.04, -1.38, 0.88, 0.14, -1.46, -0.29, 0.02, -0.46, 1.77, -1.49],
        [-0.11, -1.13, 1.09, 0.20, -1.07, -0.67, 0.01, -0.56, 1.45, -1.77],
        [-0.15, -0.96, 0.67, 0.11, -1.45, -0.49, 0.21, -0.49, 1.87, -2.16],
    ]
)
AIAG_PARTS = [str(part) for _ in range(9) for part in range(10)]
AIAG_OPERATORS = [operator for operator in "ABC" for _ in range(30)]


@pytest.fixture(scope="module")
def aiag() -> GaugeStudy:
    return gauge_study(AIAG.ravel().tolist(), AIAG_PARTS, AIAG_OPERATORS)


def deviations(study: GaugeStudy) -> dict[str, float]:
    return {one.name: one.deviation for one in study.components}


def test_the_manuals_analysis_of_variance(aiag: GaugeStudy) -> None:
    found = {one.name: (one.degrees, round(one.sum_of_squares, 4)) for one in aiag.sources}
    assert found["operator"] == (2, 3.1673)
    assert found["part"] == (9, 88.3619)
    assert found["interaction"] == (18, 0.3590)
    # The manual prints 60 and 2.7589 for the equipment before, and pools the interaction into it after.
    assert found["repeatability"] == (78, round(2.7589 + 0.3590, 4))
    interaction = aiag.sources[2]
    assert interaction.f == pytest.approx(0.434, abs=5e-4)
    assert aiag.pooled


def test_the_manuals_gauge_table(aiag: GaugeStudy) -> None:
    printed = {
        "EV": (0.199933, 18.4, 3.4),
        "AV": (0.226838, 20.9, 4.4),
        "INT": (0.0, 0.0, 0.0),
        "GRR": (0.302373, 27.9, 7.8),
        "PV": (1.042327, 96.0, 92.2),
    }
    for name, (deviation, study, contribution) in printed.items():
        one = aiag.component(name)
        assert one.deviation == pytest.approx(deviation, abs=2e-6), name
        assert (round(one.study_percent, 1), round(one.contribution_percent, 1)) == (study, contribution)
        assert one.study_variation == 6 * one.deviation
        assert one.tolerance_percent is None
    assert aiag.component("TV").deviation == pytest.approx(1.085, abs=5e-4)
    assert aiag.distinct_categories == 4  # 1.41 PV / GRR = 4.861, of which the whole number counts


def test_a_tolerance_with_one_limit() -> None:
    study = gauge_study(AIAG.ravel().tolist(), AIAG_PARTS, AIAG_OPERATORS, upper_limit=float(AIAG.mean()) + 4)
    assert study.component("GRR").tolerance_percent == pytest.approx(22.68, abs=5e-3)  # of a tolerance of 8
    assert gauge_study([1, 2, 3, 5], list("aabb"), upper_limit=1).component("EV").tolerance_percent is None


def test_the_order_of_the_measurements_and_the_unit_do_not_matter(aiag: GaugeStudy) -> None:
    order = np.random.default_rng(0).permutation(90)
    values = 1000 + 7 * AIAG.ravel()
    study = gauge_study(
        values[order].tolist(), [AIAG_PARTS[place] for place in order], [AIAG_OPERATORS[place] for place in order]
    )
    for one, other in zip(aiag.components, study.components, strict=True):
        assert other.deviation == pytest.approx(7 * one.deviation)
        assert other.contribution_percent == pytest.approx(one.contribution_percent)


def test_one_factor_unbalanced_is_the_textbook_formula() -> None:
    groups = {"a": [1.0, 2.0, 4.0], "b": [5.0, 6.5], "c": [3.0, 3.5, 2.0, 4.5], "d": [9.0]}
    values = [value for group in groups.values() for value in group]
    study = gauge_study(values, [part for part, group in groups.items() for _ in group])
    sizes = np.array([len(group) for group in groups.values()])
    means = np.array([np.mean(group) for group in groups.values()])
    within = sum(np.square(np.array(group) - np.mean(group)).sum() for group in groups.values()) / (sizes.sum() - 4)
    between = (sizes * np.square(means - np.mean(values))).sum() / 3
    size = (sizes.sum() - np.square(sizes).sum() / sizes.sum()) / 3
    found = deviations(study)
    assert found["EV"] ** 2 == pytest.approx(within)
    assert found["PV"] ** 2 == pytest.approx((between - within) / size)
    assert found["GRR"] == found["EV"]
    assert study.sources[0].f == pytest.approx(between / within)


def test_known_variances_are_found_on_average_on_an_unbalanced_design() -> None:
    """Twelve parts, four operators, one to four shots of a pair, some pairs left out."""
    random = np.random.default_rng(1)
    truth = {"EV": 0.5, "AV": 1.0, "INT": 0.8, "PV": 2.0}
    cells = [(part, operator) for part in range(12) for operator in range(4) if (part + operator) % 5]
    labels = [cell for cell in cells for _ in range(1 + random.integers(4))]
    part, operator = (np.array(column) for column in zip(*labels, strict=True))
    variances = []
    for _ in range(150):
        of_part, of_operator, of_cell = random.normal(size=12), random.normal(size=4), random.normal(size=(12, 4))
        values = (
            truth["PV"] * of_part[part]
            + truth["AV"] * of_operator[operator]
            + truth["INT"] * of_cell[part, operator]
            + truth["EV"] * random.normal(size=len(labels))
        )
        study = gauge_study(values.tolist(), part.astype(str).tolist(), operator.astype(str).tolist())
        variances.append([deviations(study)[name] ** 2 for name in truth])
    mean, error = np.mean(variances, axis=0), np.std(variances, axis=0) / math.sqrt(150)
    for found, deviation, spread in zip(mean, truth.values(), error, strict=True):
        assert abs(found - deviation**2) < 4 * spread


def test_the_interval_of_the_repeatability_holds_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    parts = [str(part) for part in range(8) for _ in range(3)]
    held = 0
    for _ in range(400):
        values = np.repeat(random.normal(size=8), 3) + 0.3 * random.normal(size=24)
        low, high = gauge_study(values.tolist(), parts).repeatability_interval
        held += low <= 0.3 <= high
    assert abs(held / 400 - 0.9) < 0.06


def test_an_interaction_is_pooled_exactly_where_its_p_value_is_above_a_twentieth() -> None:
    parts, operators = [name for name in "abcd" for _ in range(6)], list("xxyyzz" * 4)
    seen = set()
    for seed in range(40):
        random = np.random.default_rng(seed)
        values = np.repeat(0.7 * random.normal(size=12), 2) + random.normal(size=24)
        study = gauge_study(values.tolist(), parts, operators)
        [p_value] = [one.p_value for one in study.sources if one.name == "interaction"]
        assert p_value is not None
        assert study.pooled == (p_value > 0.05)
        seen.add((p_value > 0.05, p_value > 0.25))
    assert len(seen) == 3  # below, above, and above by little


def test_a_gauge_that_tells_no_part_from_another_tells_one_category() -> None:
    assert gauge_study([1, 2, 1, 2, 1, 2], list("aabbcc")).distinct_categories == 1


def test_a_gauge_that_repeats_itself_exactly() -> None:
    study = gauge_study([1, 1, 2, 2, 4, 4], list("aabbcc"))
    assert deviations(study)["GRR"] == pytest.approx(0, abs=1e-12)
    assert study.component("PV").contribution_percent == pytest.approx(100)


@pytest.mark.parametrize(
    ("values", "parts", "operators", "mention"),
    [
        ([1, 2, 3], list("aaa"), None, "two parts"),
        ([1, 2, 3], list("abc"), None, "measured twice"),
        ([1, 2, 3, 4], list("aabb"), list("xxxx"), "two"),
        ([1, 2, 3, 4], list("aabb"), list("xxyy"), "told apart"),
        ([1, 2, 3, math.nan], list("aabb"), None, "finite"),
        ([1, 2, 3], list("aabb"), None, "every measurement"),
    ],
)
def test_what_no_study_can_be_made_of(
    values: list[float], parts: list[str], operators: list[str] | None, mention: str
) -> None:
    with pytest.raises(GaugeError, match=mention):
        gauge_study(values, parts, operators)
