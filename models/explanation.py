"""Why an image has its score: integrated gradients and Grad-CAM of it (Sohn et al., sections 3.2.1 and 5.4).

The image score is the score of one window, the peak; no other window has any part in it. Where an encoder's windows are
independent, no pixel outside the peak has either: it is cut out of the image and explained by itself, one small graph
whatever the encoder, where the 3249 windows of a whole scan would not fit in memory. An encoder whose embeddings depend
on a window's surroundings runs once over the whole image, and the peak's score is explained in all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from numpy.typing import NDArray
from torch import Tensor

from models.densities import DENSITIES, RotationClassifier
from models.detector import Detector
from models.geometry import Box
from models.heatmap import peak_window
from models.operation import Operation
from models.prediction import Prediction
from models.scan import Scan

Method = Literal["integrated_gradients", "grad_cam"]
DEFAULT_STEPS = 64
PIXELS_AT_ONCE = 2**15  # of inputs along the path of integrated gradients: bounds its memory, 32 windows of 32x32


class NotExplainable(ValueError):
    """The detector's score has no gradient by the pixels of an image."""


@dataclass(frozen=True)
class Explanation:
    """What made the score of one image.

    Attributes:
        method: how it was found.
        prediction: of the image.
        window: the peak, in pixels of the detector's square input.
        attributions: (S, S) float32 over that input; above 0 makes the image more anomalous, below 0 less; 0 outside
            the window where the encoder's windows are independent. Integrated gradients: in units of the score, adding
            up to ``image_score - baseline_score``, but for the rounding of the detector's inference plan: explained is
            the encoder in float32. Grad-CAM: relative, never below 0.
        baseline_score: the score that integrated gradients start from; None for Grad-CAM.
    """

    method: Method
    prediction: Prediction
    window: Box
    attributions: NDArray[np.float32]
    baseline_score: float | None

    @property
    def total(self) -> float:
        """What the attributions add up to."""
        return float(self.attributions.sum(dtype=np.float64))

    @property
    def missed(self) -> float:
        """How much of the difference to the baseline the attributions of integrated gradients miss, as a share of it;
        0 for Grad-CAM. A score that jumps on the way from the baseline has no gradient there that could tell.
        """
        if self.baseline_score is None:
            return 0.0
        difference = self.prediction.image_score - self.baseline_score
        return abs(self.total - difference) / abs(difference) if difference else 0.0


def check_explainable(detector: Detector) -> None:
    """Raise NotExplainable where ``explain`` would, before any image is read."""
    if any(isinstance(member.density, RotationClassifier) for member in detector.scan.members):
        own = detector.scan.configuration.density.name
        raise NotExplainable(
            f"the score of {detector.category!r} is that of a {own}, which scores no embeddings; explained can be the "
            f"scores of {', '.join(sorted(DENSITIES.keys() - {own}))}"
        )


def explain(
    detector: Detector,
    image: NDArray[np.uint8],
    method: Method = "integrated_gradients",
    steps: int = DEFAULT_STEPS,
    operation: Operation | None = None,
) -> Explanation:
    """Attribute the image score to pixels; of an ensemble, the mean of its members' scores.

    Integrated gradients (Sundararajan, Taly, Yan, ICML 2017) follow the score from a baseline to the input: a patch of
    the input's own mean colour, so what is explained is its structure, bright or dark; a defect that colours the whole
    window evenly is not. (Black and the whole image's mean are often further from good parts than the defect.)
    Grad-CAM (Selvaraju et al., ICCV 2017) weighs the last features of the encoder that still have space, at their
    resolution.

    Args:
        image: (H, W, 3) uint8 RGB of any size, as ``decode_image`` gives it.
        method: see above.
        steps: of the integral; more come closer to completeness and take longer.
        operation: as ``Detector.predict`` takes it.

    Raises:
        NotExplainable: the density has no gradient by the image.
    """
    check_explainable(detector)
    geometry, members = detector.geometry, detector.scan.members
    [prediction] = detector.predict([image], operation)
    placed, placement = detector.place(image)
    region = operation.region_of_interest if operation else None
    peak = peak_window(prediction.score_map, geometry, placement.content, region)
    window = geometry.window(*peak)
    if members[0].encoder.independent_windows:
        shown, score = window, _PeakScore(members, 0, 0)  # the only window of what is shown
    else:
        shown, score = geometry.square, _PeakScore(members, *peak)
    area = np.s_[shown.y : shown.y + shown.height, shown.x : shown.x + shown.width]
    pixels = members[0].pixels(placed[area][None])
    baseline_score = None
    if method == "integrated_gradients":
        baseline = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
        values = _integrated_gradients(score, pixels, baseline, steps)
        with torch.inference_mode():
            baseline_score = float(score(baseline))
    else:
        values = _grad_cam(score, pixels)
    attributions = np.zeros(placed.shape[:2], np.float32)
    attributions[area] = values.cpu().numpy()
    return Explanation(method, prediction, window, attributions, baseline_score)


class _PeakScore(NamedTuple):
    """The score of window (i, j): (B, 3, H, W) in [0, 1] -> (B,); higher is more anomalous."""

    members: Sequence[Scan]
    i: int
    j: int

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.stack([self.of_member(member, pixels) for member in self.members]).mean(dim=0)

    def of_member(self, member: Scan, pixels: Tensor) -> Tensor:
        embeddings: Tensor = member.encoder(pixels)  # (B, D, h, w)
        return -member.density.scores(embeddings[:, :, self.i, self.j])


def _integrated_gradients(score: _PeakScore, pixels: Tensor, baseline: Tensor, steps: int) -> Tensor:
    """(H, W): the sum over the channels."""
    at_once = max(1, PIXELS_AT_ONCE // pixels[0, 0].numel())
    attributions: Tensor = IntegratedGradients(score).attribute(
        pixels, baseline, n_steps=steps, internal_batch_size=at_once
    )
    return attributions[0].sum(dim=0)


def _grad_cam(score: _PeakScore, pixels: Tensor) -> Tensor:
    """(H, W): the mean over the members, without what lowers the score."""
    return torch.stack([_member_grad_cam(score, member, pixels) for member in score.members]).mean(dim=0).clamp_min(0)


def _member_grad_cam(score: _PeakScore, member: Scan, pixels: Tensor) -> Tensor:
    grid = member.encoder.grad_cam_grid()
    method = LayerGradCam(lambda pixels: score.of_member(member, pixels), grid.layer)
    cells: Tensor = method.attribute(pixels.clone().requires_grad_())[0, 0].detach()  # (h', w')
    rows, columns = (
        cells.new_tensor(_between(length, count, grid.first, grid.step))
        for length, count in zip(pixels.shape[2:], cells.shape, strict=True)
    )
    return rows @ cells @ columns.T


def _between(length: int, count: int, first: float, step: int) -> NDArray[np.float64]:
    """Weights (length, count) of cells at ``first + step * k`` for each pixel: linear between them, constant beyond."""
    centres = first + step * np.arange(count)
    return np.stack([np.interp(np.arange(length), centres, one) for one in np.eye(count)], axis=1)
