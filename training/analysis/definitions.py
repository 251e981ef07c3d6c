"""The analyses: each varies one setting and leaves the rest as the paper's tables have it.

What is trained is a variant. Two analyses that want the same one share its name, and so its training and its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from training.reproduction.methods import METHODS, PAPER_KDE, Classifier, Method
from training.reproduction.paper import Figure
from training.reproduction.settings import PAPER

Representation = Literal["f", "g"]


@dataclass(frozen=True)
class Variant(Method):
    """A representation, and what is done to the images that it is learned and scored on.

    Attributes:
        train_images: of the class, drawn at random; None for all.
        outliers: percentage of the training images, of both stages, that are of other classes.
        turned: whether every training and test image is turned by 0, 90, 180 or 270 degrees, drawn at random once.
    """

    train_images: int | None = None
    outliers: float = 0.0
    turned: bool = False

    def fits(self, classifier: Classifier) -> bool:
        """A classifier of clean images has as many as it asks for only where none were left out."""
        return not (isinstance(classifier, Fitted) and classifier.clean and self.train_images)


@dataclass(frozen=True)
class Fitted(Classifier):
    """A kernel density: of which representation, and fitted on which images.

    Attributes:
        representation: the encoder's f / ||f||, or the projection head's g(f) / ||g(f)||.
        clean: images of the class itself that it is fitted on, drawn at random; None for all training images, outliers
            among them.
    """

    representation: Representation = "f"
    clean: int | None = None


CLASSIFIERS: Mapping[str, Fitted] = {
    "f": Fitted("KDE", PAPER_KDE),
    "g": Fitted(None, PAPER_KDE, "g"),
    "f_clean_50": Fitted(None, PAPER_KDE, clean=50),
    "f_clean_100": Fitted(None, PAPER_KDE, clean=100),
}


class Point(NamedTuple):
    """A method with a value of the setting, and the variant's name."""

    method: str
    value: str
    variant: str


@dataclass(frozen=True)
class Analysis:
    """One setting varied.

    Attributes:
        shows: what, and where in the paper.
        setting: what is varied, a heading.
        methods: that it is varied for, names of ``METHODS``.
        values: of the setting.
        vary: a method with another value.
        classifiers: that are shown, names of ``CLASSIFIERS``.
        over_mmd: whether AUROC is drawn over log MMD, and their correlation given, instead of AUROC over the values.
    """

    shows: str
    setting: str
    methods: tuple[str, ...]
    values: tuple[str, ...]
    vary: Callable[[Variant, str], Variant]
    classifiers: tuple[str, ...] = ("f", "g")
    over_mmd: bool = False

    def variants(self) -> Iterator[tuple[str, str, Variant]]:
        """Every method with every value, and what that is."""
        for value in self.values:
            for method in self.methods:
                yield method, value, self.vary(_BASES[method], value)

    def points(self, methods: Collection[str], values: Collection[str]) -> list[Point]:
        """Those of some methods and values, the values in order."""
        return [
            Point(method, value, _NAMES[variant])
            for method, value, variant in self.variants()
            if method in methods and value in values
        ]


def _batch_size(base: Variant, value: str) -> Variant:
    size = int(value)
    return replace(base, batch_size=size, paper=base.paper if size == PAPER["batch_size"] else None)


def _head_depth(base: Variant, value: str) -> Variant:
    if value == "0" and base == _BASES["rotation"]:
        return _BASES["rotnet"]
    return _with_pretext(base, head_depth=int(value))


def _distribution(base: Variant, value: str) -> Variant:
    """A flips beside none of the unions, as in the authors' script, so that the union alone is varied."""
    if value == "none":
        return _with_pretext(_BASES["contrastive"], flip=False)
    return _with_pretext(base, transforms=value.split("+"), flip=False)


def _train_images(base: Variant, value: str) -> Variant:
    return _with(base, train_images=None if value == "whole" else int(value))


def _of_another(base: Variant, value: str) -> Variant:
    name, own = value.split(" ")
    return ANALYSES[name].vary(base, own)


def _with_pretext(base: Variant, **changes: Any) -> Variant:
    return _with(base, pretext=type(base.pretext).model_validate({**base.pretext.model_dump(), **changes}))


def _with(base: Variant, **changes: Any) -> Variant:
    """What differs from the paper's tables stands beside no figure of theirs."""
    changed = replace(base, **changes)
    return base if changed == base else replace(changed, paper=None)


_BASES: Mapping[str, Variant] = {
    name: Variant(METHODS[name].paper, METHODS[name].pretext)
    for name in ("rotnet", "rotation", "contrastive", "distribution_augmented")
}
_THREE = ("rotation", "contrastive", "distribution_augmented")
_BATCHES = ("8", "16", "32", "64", "128", "256", "512")
_DEPTHS = tuple(str(depth) for depth in range(9))
_OUTLIERS = ("0", "0.5", "1", "2", "5", "10")

ANALYSES: Mapping[str, Analysis] = {
    "batch-size": Analysis(
        "contrastive learning with batches of other sizes (Figure 4)",
        "batch size",
        ("contrastive",),
        _BATCHES,
        _batch_size,
    ),
    "head-depth": Analysis(
        "hidden layers of the projection head (Figure 4c); rotation prediction with none is RotNet",
        "head depth",
        ("rotation", "contrastive"),
        _DEPTHS,
        _head_depth,
    ),
    "representation": Analysis(
        "the projection head's input f against its output g(f), of one network (Figure 4c)",
        "settings",
        _THREE,
        ("paper",),
        lambda base, value: base,
    ),
    "training-set-size": Analysis(
        "fewer training images (Figure 7)",
        "training images",
        _THREE,
        ("50", "100", "250", "500", "1000", "2500", "whole"),
        _train_images,
    ),
    "distribution-augmentations": Analysis(
        "which copies the images are joined with (section 5.2, Figure 9)",
        "joined with",
        ("distribution_augmented",),
        (
            # Types 1 to 8 of the authors' script, each joined with one more than the one before.
            "none", "hflip", "hflip+rot90", "hflip+rot90+hflip_rot90",
            "hflip+rot90+hflip_rot90+rot180",
            "hflip+rot90+hflip_rot90+rot180+hflip_rot180",
            "hflip+rot90+hflip_rot90+rot180+hflip_rot180+rot270",
            "hflip+rot90+hflip_rot90+rot180+hflip_rot180+rot270+hflip_rot270",
            # Turns without their mirror images.
            "rot90", "rot180", "rot270", "rot90+rot180+rot270", "hflip+rot90+rot180+rot270",
        ),
        _distribution,
    ),
    "random-rotation": Analysis(
        "training and test images turned at random: nothing is left to predict (section A.2.2)",
        "images",
        _THREE,
        ("upright", "turned"),
        lambda base, value: _with(base, turned=value == "turned"),
    ),
    "uniformity": Analysis(
        "how far embeddings are from uniform on the sphere, and how well they do",
        "model",
        ("contrastive",),
        (*(f"batch-size {value}" for value in _BATCHES), *(f"head-depth {value}" for value in _DEPTHS)),
        _of_another,
        over_mmd=True,
    ),
    "contamination": Analysis(
        "images of other classes among the training images of both stages",
        "outliers, percent",
        _THREE,
        _OUTLIERS,
        lambda base, value: _with(base, outliers=float(value)),
    ),
    "clean-images": Analysis(
        "a classifier fitted on few clean images, the representation learned with outliers",
        "outliers, percent",
        _THREE,
        _OUTLIERS,
        lambda base, value: _with(base, outliers=float(value)),
        classifiers=("f", "f_clean_50", "f_clean_100"),
    ),
}  # fmt: skip

_NAMES: dict[Variant, str] = {variant: name for name, variant in _BASES.items()}
for _analysis, _definition in ANALYSES.items():
    for _method, _value, _variant in _definition.variants():
        _NAMES.setdefault(_variant, f"{_method} {_analysis} {_value}")
VARIANTS: Mapping[str, Variant] = {name: variant for variant, name in _NAMES.items()}

# What the paper says in its text, as means over all classes; its tables hold the rest.
PAPER_MEANS: Mapping[tuple[str, str], Figure] = {
    ("CIFAR-10", "rotation random-rotation turned"): Figure(60.7, None),
    ("CIFAR-10", "distribution_augmented random-rotation turned"): Figure(92.4, None),
    ("CIFAR-10", "distribution_augmented distribution-augmentations hflip+rot90+hflip_rot90"): Figure(93.7, None),
}
PAPER_CORRELATIONS: Mapping[Representation, float] = {"f": 0.774, "g": 0.914}
