from __future__ import annotations

import numpy as np
import pytest

from service.backlog import Backlog, TooMuchHeld


def test_bytes_are_held_while_the_block_runs() -> None:
    backlog = Backlog(100)
    with backlog.holding() as hold:
        hold(30)
        hold(30)
        assert backlog.bytes == 60
        with pytest.raises(TooMuchHeld, match="100 bytes"):
            hold(41)
        hold(40)
        assert backlog.bytes == 100
        with pytest.raises(TooMuchHeld, match="100 bytes"):
            backlog.check()
    assert backlog.bytes == 0
    backlog.check()


def test_an_array_counts_as_long_as_anybody_has_it() -> None:
    backlog = Backlog(100)
    array = np.zeros(80, np.uint8)
    backlog.keep(array)
    other = array
    del array
    assert backlog.bytes == 80
    with pytest.raises(TooMuchHeld):
        backlog.keep(np.zeros(21, np.uint8))
    assert backlog.bytes == 80
    del other
    assert backlog.bytes == 0


def test_one_that_is_too_large_is_held_alone() -> None:
    backlog = Backlog(100)
    array = np.zeros(1000, np.uint8)
    backlog.keep(array)
    with pytest.raises(TooMuchHeld):
        backlog.check()
    assert backlog.bytes == array.nbytes
