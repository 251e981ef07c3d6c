"""What a pretext task is: a loss on crops of good images that makes the encoder learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from models.encoders import Encoder


class PretextResult(NamedTuple):
    """One step's outcome: ``loss`` to differentiate, ``accuracy`` in [0, 1] to watch.

    Of a task that classifies nothing it is another measure of success in [0, 1]; the task says which.
    """

    loss: Tensor
    accuracy: Tensor


class PretextTask(nn.Module):
    """A self-supervised objective, with the projection head and the augmentation that belong to it.

    The head's parameters are trained with the encoder's and thrown away after. Random choices come from torch's
    global generator of the crops' device and of the CPU, so that a checkpoint of those two resumes exactly.
    """

    def prepare(self, encoder: Encoder, sample: Callable[[], Tensor]) -> None:
        """Whatever must be known before the first step; not called when a run is resumed.

        Args:
            encoder: as it is before training.
            sample: draws a batch of crops (B, 3, C, C) in [0, 1].
        """

    def forward(self, encoder: Encoder, crops: Tensor) -> PretextResult:
        """Loss on a batch.

        Args:
            encoder: the network being trained.
            crops: (B, 3, C, C) float in [0, 1]; with C above the patch size one crop trains many windows.
        """
        raise NotImplementedError
