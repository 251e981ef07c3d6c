"""What options turn into: the settings of one encoder, density or pretext task."""

from __future__ import annotations

import argparse

from cli.options import member


def test_an_option_gives_a_setting_of_the_kind_that_it_is_for_alone() -> None:
    """A density has settings called ``seed`` and ``precision``, and so has training."""
    options = argparse.Namespace(
        density=None, seed=3, precision="float32", **{"density.seed": 7, "density.neighbours": None, "encoder.width": 4}
    )
    assert member("density", "kernel_density", {"kernel_density": object()}, options) == {
        "name": "kernel_density",
        "seed": 7,
    }
    assert member("encoder", "dense_patch", {"dense_patch": object()}, argparse.Namespace(encoder=None)) == {
        "name": "dense_patch"
    }
