"""``Scan``, the half of a detector that learns: inputs to score maps and anomaly maps; ``Ensemble`` of several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.configuration import DetectorConfiguration
from models.densities import Density
from models.device import keep_float32
from models.encoders import Encoder, as_input
from models.heatmap import GaussianUpsampler
from models.inference import InferencePlan, embedder, network_of
from models.lanes import side_by_side
from models.validity import summarise


class Look(NamedTuple):
    """What a scan sees in B inputs.

    Attributes:
        score_maps: (B, h, w) float32; higher is more anomalous.
        anomaly_maps: (B, S, S) float32, likewise.
        summaries: (B, D) float32, what ``Validity`` compares; the embeddings of an ensemble's members side by side.
        score_errors: (B, h, w) float32, how far each score may be off at 95 % confidence for having been sampled; 0
            where nothing was.
    """

    score_maps: NDArray[np.float32]
    anomaly_maps: NDArray[np.float32]
    summaries: NDArray[np.float32]
    score_errors: NDArray[np.float32]


class Scan:
    """The half of a detector that learns: images to score maps and anomaly maps, before any calibration.

    An ``Ensemble`` of several is used in the same way.

    Args:
        configuration: what it is made of; a plan that leaves the precision open is resolved for the device.
        encoder: trained; put into evaluation mode. What runs is a copy of its weights as they are now.
        density: fitted on the encoder's embeddings.
        device: where all of it runs.

    Attributes:
        encoder: as it was trained, in float32; scores are explained by it.
        network: the copy.

    Raises:
        InferenceError: the plan does not run here.
    """

    def __init__(
        self, configuration: DetectorConfiguration, encoder: Encoder, density: Density, device: torch.device
    ) -> None:
        keep_float32()
        plan = configuration.inference.resolved(device)
        self.configuration = configuration.model_copy(update={"inference": plan})
        self.encoder = encoder.eval().to(device).to(memory_format=torch.channels_last)
        self.network = network_of(self.encoder, plan)
        self._embed = embedder(self.network, plan, device)
        self.density = density
        self.device = device
        self.upsample = GaussianUpsampler(configuration.geometry, configuration.sigma, device)

    @property
    def members(self) -> tuple[Scan, ...]:
        """The scans whose score maps are averaged: this one alone."""
        return (self,)

    @property
    def abreast(self) -> bool:
        """Whether images are looked at side by side: on a CPU, but by what is compiled for one number of threads."""
        return self.device.type == "cpu" and self.configuration.inference.engine == "torch"

    @torch.inference_mode()
    def embed(self, images: NDArray[np.uint8]) -> Tensor:
        """Every window's embedding: (B, S, S, 3) -> (B, h, w, D) unit-norm, on the device."""
        return self._embed(self.pixels(images)).permute(0, 2, 3, 1)

    def look(self, images: NDArray[np.uint8]) -> Look:
        """What there is to see in inputs (B, S, S, 3)."""
        return _look(self.members, images)

    def maps(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The score maps and the anomaly maps of ``look``."""
        return self.look(images)[:2]

    def scores_and_embeddings(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score maps and their errors (B, h, w), embeddings (B, D, h, w) of what ``pixels`` gives, on the device."""
        embeddings = self._embed(pixels)
        scores, errors = self.density.score_map_with_error(self.network, pixels, embeddings)
        return -scores, errors, embeddings

    def pixels(self, images: NDArray[np.uint8]) -> Tensor:
        """Inputs (B, S, S, 3) as an encoder takes them: (B, 3, S, S) in [0, 1], on the device."""
        return as_input(torch.from_numpy(images).to(self.device))


class Ensemble:
    """Scans of one configuration, learned from other seeds or by other pretext tasks; its score map is their mean.

    Raw scores are averaged, as Sohn et al. do, and need no scaling: one density configuration gives all members' scores
    one unit, for a kernel density the squared distance between unit vectors, whatever the encoder.

    Args:
        members: at least one; all of one configuration, on one device.
    """

    def __init__(self, members: Sequence[Scan]) -> None:
        self.members = tuple(members)
        self.configuration = members[0].configuration
        self.device = members[0].device
        self.abreast = members[0].abreast

    def look(self, images: NDArray[np.uint8]) -> Look:
        """As ``Scan.look``."""
        return _look(self.members, images)

    def maps(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As ``Scan.maps``."""
        return self.look(images)[:2]


def _look(members: Sequence[Scan], images: NDArray[np.uint8]) -> Look:
    look, parts = partial(_look_at_once, members), at_once(images, members[0].device)
    looks = side_by_side(look, parts) if members[0].abreast else [look(part) for part in parts]
    return looks[0] if len(looks) == 1 else Look(*map(np.concatenate, zip(*looks, strict=True)))


def at_once(images: NDArray[np.uint8], device: torch.device) -> list[NDArray[np.uint8]]:
    """Inputs (B, S, S, 3) in the parts that a look takes: all together, but on a CPU one by one.

    A CPU is no faster with several in one pass than side by side; and it takes more memory, and sums round by how many
    there are.
    """
    return list(np.split(images, len(images))) if device.type == "cpu" else [images]


@torch.inference_mode()
def _look_at_once(members: Sequence[Scan], images: NDArray[np.uint8]) -> Look:
    first = members[0]
    pixels = first.pixels(images)
    scores, errors, embeddings = zip(*(member.scores_and_embeddings(pixels) for member in members), strict=True)
    mean = torch.stack(scores).mean(dim=0)
    of_mean = torch.stack(errors).square().sum(dim=0).sqrt() / len(members)  # each has samples of its own
    arrays = mean, first.upsample(mean), summarise(pixels, torch.cat(embeddings, dim=1)), of_mean
    return Look(*(array.cpu().numpy() for array in arrays))


def combine(members: Sequence[Scan]) -> Scan | Ensemble:
    """One scan as it is, several as an ensemble."""
    return members[0] if len(members) == 1 else Ensemble(members)


def by_plan(scan: Scan | Ensemble, plan: InferencePlan) -> Scan | Ensemble:
    """A scan whose embeddings are computed by another plan, on the densities that it has.

    Raises:
        InferenceError: the plan does not run here.
    """
    configuration = scan.configuration.model_copy(update={"inference": plan})
    return combine([Scan(configuration, member.encoder, member.density, member.device) for member in scan.members])
