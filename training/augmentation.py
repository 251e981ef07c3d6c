"""View augmentation A of the paper, on the device, each sample with parameters of its own (kornia).

torchvision's v2 transforms draw one set of parameters for a whole batch, kornia's one for each sample.
"""

from __future__ import annotations

import kornia.augmentation as K
from torch import nn


def view_augmentation(crop_size: int, *, flip: bool = True) -> nn.Module:
    """A(x) of section 3.1: resize and crop, horizontal flip, colour jitter, grayscale, Gaussian blur.

    The strengths are those of the authors' scripts: crops from half the side, jitter 0.4 each, grayscale with
    probability 0.2, blur with probability 0.5.

    Args:
        crop_size: C, in pixels.
        flip: whether the horizontal flip is one of them.

    Returns:
        A module (B, 3, C, C) in [0, 1] -> the same.
    """
    return nn.Sequential(
        K.RandomResizedCrop((crop_size, crop_size), scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(p=0.5) if flip else nn.Identity(),
        colour_jitter(0.4, hue=0.4),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5),
    )


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
