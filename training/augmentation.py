"""View augmentation A of the paper, on the device, each sample with parameters of its own (kornia).

torchvision's v2 transforms draw one set of parameters for a whole batch, kornia's one for each sample.
"""

from __future__ import annotations

import kornia.augmentation as K
import torch
from kornia.geometry.bbox import bbox_generator
from kornia.geometry.transform import crop_and_resize
from torch import Tensor, nn


def view_augmentation(crop_size: int, *, flip: bool = True) -> nn.Module:
    """A(x) of section 3.1: resize and crop, horizontal flip, colour jitter, grayscale, Gaussian blur.

    The strengths are those of the authors' scripts: square crops of half the side to all of it, jitter 0.4 each,
    grayscale with probability 0.2, blur with probability 0.5.

    Args:
        crop_size: C, in pixels.
        flip: whether the horizontal flip is one of them.

    Returns:
        A module (B, 3, C, C) in [0, 1] -> the same.
    """
    return nn.Sequential(
        RandomSquareCrop(crop_size, smallest=0.5),
        K.RandomHorizontalFlip(p=0.5) if flip else nn.Identity(),
        colour_jitter(0.4, hue=0.4),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5),
    )


class RandomSquareCrop(nn.Module):
    """A square from anywhere, resized; as in the authors' code its side is drawn uniformly, where SimCLR's and kornia's
    crops draw an area and an aspect ratio.

    Args:
        size: C, in pixels, of what comes out.
        smallest: the shortest side, as a share of the image's.
    """

    def __init__(self, size: int, smallest: float) -> None:
        super().__init__()
        self.size, self.smallest = size, smallest

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 3, C, C)."""
        longest = images.shape[-1]
        share, x, y = torch.rand(3, len(images), device=images.device)
        side = longest * (self.smallest + (1 - self.smallest) * share)
        boxes = bbox_generator(x * (longest - side), y * (longest - side), side, side)
        return crop_and_resize(images, boxes, (self.size, self.size))


def moco_augmentation(crop_size: int) -> nn.Module:
    """The views of MoCo v2, which Reiss and Hoshen take: larger zooms than A(x), less and rarer jitter of the hue.

    Returns:
        A module (B, 3, C, C) in [0, 1] -> the same.
    """
    return nn.Sequential(
        K.RandomResizedCrop((crop_size, crop_size), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)),
        colour_jitter(0.4, hue=0.1, probability=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5),
        K.RandomHorizontalFlip(p=0.5),
    )


def colour_jitter(strength: float, hue: float = 0.0, probability: float = 1.0) -> nn.Module:
    """Brightness, contrast and saturation jitter of ``strength``; ``hue`` in turns of the circle, at most 0.5."""
    jitter: nn.Module = K.ColorJiggle(strength, strength, strength, hue, p=probability)
    return jitter
