"""The rows and columns of the paper's tables: every pretext task and every density, with the paper's settings.

Each bears its own name; those that a table needs with other settings are added under names of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter

from models.densities import (
    DENSITIES,
    DensityConfiguration,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
    OneClassSVMConfiguration,
    RotationClassifierConfiguration,
)
from models.encoders import EncoderConfiguration, PretrainedPatchConfiguration
from training.pretext import (
    PRETEXTS,
    CutPasteConfiguration,
    DistributionAugmentedConfiguration,
    MeanShiftedConfiguration,
    NoneConfiguration,
    PretextConfiguration,
    RotationTasks,
)

PAPER_ROWS = {
    "none": "ResNet-18 random",
    "rotnet": "RotNet",
    "denoising": "denoising",
    "rotation": "rotation MLP",
    "contrastive": "contrastive",
    "distribution_augmented": "contrastive DistAug",
}
PAPER_COLUMNS = {
    "kernel_density": "KDE",
    "one_class_svm": "OC-SVM rbf",
    "one_class_svm_linear": "OC-SVM linear",
    "gaussian_density": "GDE",
    "rotation_classifier": "rotation classifier",
}


@dataclass(frozen=True)
class Method:
    """A representation.

    Attributes:
        paper: the name of its rows in the paper's tables; None where it has none.
        pretext: the task that it is learned by.
        encoder: the pretrained network that it begins with; None for the one of the study's size.
        batch_size: images a step; None for the size's, or else the paper's.
    """

    paper: str | None
    pretext: PretextConfiguration
    encoder: EncoderConfiguration | None = None
    batch_size: int | None = None

    @property
    def copies(self) -> int:
        """How many times as many images as there are it learns from."""
        pretext = self.pretext
        return 1 + len(pretext.transforms) if isinstance(pretext, DistributionAugmentedConfiguration) else 1

    def fits(self, classifier: Classifier) -> bool:
        """Whether ``classifier`` can score this representation: the rotation classifier needs its head."""
        needs_head = isinstance(classifier.density, RotationClassifierConfiguration)
        return not needs_head or isinstance(self.pretext, RotationTasks)


@dataclass(frozen=True)
class Classifier:
    """A one-class classifier: its configuration, and the name of its columns in the paper's tables, if any."""

    paper: str | None
    density: DensityConfiguration


_PRETEXT: TypeAdapter[PretextConfiguration] = TypeAdapter(PretextConfiguration)
_DENSITY: TypeAdapter[DensityConfiguration] = TypeAdapter(DensityConfiguration)
_PRETRAINED = PretrainedPatchConfiguration()

# The sum itself, over all that it is fitted on.
PAPER_KDE = KernelDensityConfiguration(mode="exact", bank_megabytes=1000)

_PRETEXTS: dict[str, PretextConfiguration] = {
    **{name: _PRETEXT.validate_python({"name": name}) for name in PRETEXTS},
    "cutpaste_binary": CutPasteConfiguration(task="binary"),
    "cutpaste_scar": CutPasteConfiguration(task="scar"),
}
_DENSITIES: dict[str, DensityConfiguration] = {
    **{name: _DENSITY.validate_python({"name": name}) for name in DENSITIES},
    "kernel_density": PAPER_KDE,
    "one_class_svm_linear": OneClassSVMConfiguration(kernel="linear"),
    "nearest_neighbours_2": NearestNeighboursConfiguration(neighbours=2),
}

# The paper's first, in the order of its tables.
METHODS: Mapping[str, Method] = {
    **{name: Method(PAPER_ROWS.get(name), _PRETEXTS[name]) for name in dict.fromkeys((*PAPER_ROWS, *_PRETEXTS))},
    # Mid-level features of another backbone than the paper's ImageNet rows have, so no figure of them stands beside it.
    "imagenet": Method(None, NoneConfiguration(), _PRETRAINED),
    "mean_shifted": Method(None, MeanShiftedConfiguration(), _PRETRAINED),
}

CLASSIFIERS: Mapping[str, Classifier] = {
    name: Classifier(PAPER_COLUMNS.get(name), _DENSITIES[name]) for name in dict.fromkeys((*PAPER_COLUMNS, *_DENSITIES))
}
