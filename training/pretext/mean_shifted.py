"""Mean-shifted contrastive loss (Reiss, Hoshen: Mean-Shifted Contrastive Loss for Anomaly Detection, AAAI 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.encoders import Encoder
from models.heads import window_vectors
from training.augmentation import moco_augmentation
from training.pretext.base import PretextResult, PretextTask
from training.pretext.contrastive import similarities

CENTRE_BATCHES = 64  # crops that the centre is the mean of, in batches


class MeanShiftedConfiguration(BaseModel):
    """Settings of the mean-shifted contrastive loss, for an encoder that begins with weights learned elsewhere.

    Attributes:
        temperature: tau; the paper's.
        angular: add the angular centre loss, the mean squared distance of both views to the centre on the sphere. The
            authors' script has it as an option that is off; it was on in the first version of the paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["mean_shifted"] = "mean_shifted"
    temperature: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    angular: bool = False


class MeanShifted(PretextTask):
    """``nt_xent`` of embeddings as seen from the centre c of the good images' embeddings: (f(x) - c) / ||f(x) - c||.

    Embeddings of a pretrained network lie close together on the sphere. Told apart as they are, they would be driven
    apart from each other and from the centre; shifted, only their angles around it count. No projection head: the loss
    works on what the density is going to see. The authors score by the 2 nearest neighbours.

    Attributes:
        centre: (D,), the mean embedding of crops of the good images before training; of length 1 with ``angular``.
    """

    centre: Tensor

    def __init__(self, configuration: MeanShiftedConfiguration, dimension: int, crop_size: int) -> None:
        super().__init__()
        self.configuration = configuration
        self.augment = moco_augmentation(crop_size)
        self.register_buffer("centre", torch.zeros(dimension))

    def prepare(self, encoder: Encoder, sample: Callable[[], Tensor]) -> None:
        """Find the centre."""
        encoder.eval()
        with torch.no_grad():
            means = [window_vectors(encoder(sample())).mean(dim=0) for _ in range(CENTRE_BATCHES)]
        centre = torch.stack(means).mean(dim=0)
        self.centre.copy_(F.normalize(centre, dim=0) if self.configuration.angular else centre)

    def forward(self, encoder: Encoder, crops: Tensor) -> PretextResult:
        """Loss on (B, 3, C, C) crops, and how often a view's nearest is the other view of its crop."""
        with torch.no_grad():
            views = torch.cat([self.augment(crops), self.augment(crops)])
        shifted = window_vectors(encoder(views)).float() - self.centre
        first, second = shifted.chunk(2)
        loss, accuracy = nt_xent(first, second, self.configuration.temperature)
        if self.configuration.angular:
            loss = loss + 2 * shifted.square().sum(dim=1).mean()  # the sum of both views' means
        return PretextResult(loss, accuracy)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> PretextResult:
    """NT-Xent (Chen et al., SimCLR, ICML 2020, eq. 1): every view against all others of both kinds, in both directions.

    Mean over the 2 B views z of -log(exp(z . z+ / tau) / sum over the 2 B - 1 others z' of exp(z . z' / tau)), all
    normalised, z+ being the other view of the same crop.

    Args:
        first: (B, D) of view 1, of any length.
        second: (B, D) of view 2, in the same order.
        temperature: tau.

    Returns:
        The loss, and the share of views whose most similar other is z+.
    """
    views = torch.cat([first, second])  # (2 B, D)
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    logits = (similarities(views, views) / temperature).masked_fill(itself, -torch.inf)  # (2 B, 2 B)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return PretextResult(F.cross_entropy(logits, partner), (logits.argmax(dim=1) == partner).float().mean())
