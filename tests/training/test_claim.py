"""A folder of long work: one process at a time, and what differs from what lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.claim import differences, held


def test_a_lock_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    for _ in range(2):
        with (
            held(lock, ValueError("first")),
            pytest.raises(ValueError, match="second"),
            held(lock, ValueError("second")),
        ):
            pytest.fail("held twice")


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}}, "b.c is [1, 2] there and [1, 3] now"),
        ({"a": {"b": 1}, "c": 2}, {"a": 5}, "a.b is 1 there and absent now; c is 2 there and absent now; "
         "a is absent there and 5 now"),
        ({}, {"a": {"b": {"c": None}}}, "a.b.c is absent there and None now"),
    ],
)  # fmt: skip
def test_differences_are_named_by_their_paths(theirs: dict[str, Any], ours: dict[str, Any], said: str) -> None:
    assert differences(theirs, ours) == said
