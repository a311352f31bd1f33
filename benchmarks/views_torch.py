"""MoCo-v2's augmentation in PyTorch as one would write it for speed on one CPU.

A whole batch at a time, out of resident pixels of one size, with random numbers of each image's
own; only the order of the four changes of colour is one for the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
STRENGTH, HUE, SIGMA = 0.4, 0.1, (0.1, 2.0)
JITTER, GREY, BLUR, FLIP = 0.8, 0.2, 0.5, 0.5  # probabilities
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def views(pixels: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """One normalised view of each image.

    Args:
      pixels: u8[n, side, side, 3].
      size: side of a view.
      mean: [3], of pixels in [0, 1].
      std: [3].

    Returns:
      [n, 3, size, size], channels last.
    """
    x = _cropped(pixels, size)
    changes = (_jittered, JITTER), (_luma, GREY), (_blurred, BLUR), (_mirrored, FLIP)
    for change, probability in changes:
        chosen = torch.rand(len(x)) < probability
        x[chosen] = change(x[chosen])
    x = (x - mean[:, None, None]) / std[:, None, None]
    return x.contiguous(memory_format=torch.channels_last)


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(len(x), 1, 1, 1)


def _cropped(pixels: Tensor, size: int) -> Tensor:
    """[n, 3, size, size] in [0, 1]: random crops, resized by antialiased bilinear weights."""
    count, side = pixels.shape[:2]
    area = side**2 * (SCALE[0] + (SCALE[1] - SCALE[0]) * torch.rand(count, 10))
    ratio = torch.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * torch.rand(count, 10))
    sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()]).round()
    fits = (sides <= side).all(0)
    first = fits.int().argmax(1)
    height, width = sides[:, torch.arange(count), first].clamp(1, side)  # one in ten fits
    rows, columns = (
        _weights(torch.floor(torch.rand(count) * (side - length + 1)), length, size, side)
        for length in (height, width)
    )
    images = pixels.permute(0, 3, 1, 2).float() / 255
    return rows[:, None] @ images @ columns[:, None].mT


def _weights(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """[n, size, side], of each pixel in each pixel of the crop from `start` [n] of `length` [n]."""
    start, length = start[:, None, None], length[:, None, None]
    step = length / size
    centre = start + (torch.arange(size)[:, None] + 0.5) * step
    pixel = torch.arange(side) + 0.5
    weights = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


def _jittered(x: Tensor) -> Tensor:
    for change in torch.randperm(4).tolist():
        x = _turned(x) if change == 3 else _blended(x, change)
    return x


def _blended(x: Tensor, change: int) -> Tensor:
    """Brightness, contrast or saturation: a blend with black, mean grey or grey."""
    factor = _uniform(x, 1 - STRENGTH, 1 + STRENGTH)
    if change == 0:
        return (factor * x).clamp(0, 1)
    grey = _luma(x)
    other = grey.mean((2, 3), keepdim=True) if change == 1 else grey
    return torch.lerp(other, x, factor).clamp(0, 1)


def _luma(x: Tensor) -> Tensor:
    return (LUMA * x).sum(1, keepdim=True)


def _mirrored(x: Tensor) -> Tensor:
    return x.flip(-1)


def _turned(x: Tensor) -> Tensor:
    """The hue turned; chroma and the smallest channel stay, channels are a wave of the hue."""
    red, green, blue = x.unbind(1)
    low, high = x.amin(1), x.amax(1)
    chroma = high - low
    safe = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * _uniform(x, -HUE, HUE)[:, 0]
    wave = (sextant[:, None] + torch.tensor([0, 4, 2])[:, None, None]) % 6
    wave = ((wave - 3).abs() - 1).clamp(0, 1)
    return low[:, None] + chroma[:, None] * wave


def _blurred(x: Tensor) -> Tensor:
    """A Gaussian blur, mirrored about the outermost pixels."""
    side, sigma = x.shape[-1], _uniform(x, *SIGMA)[:, 0, 0]
    to, of = torch.arange(side)[:, None], torch.arange(side)
    weight = torch.exp(-0.5 * (torch.arange(2 * side - 1) / sigma) ** 2)
    matrix = weight[:, (to - of).abs()]
    matrix = matrix + weight[:, to + of] * (of > 0)
    matrix = matrix + weight[:, 2 * (side - 1) - to - of] * (of < side - 1)
    matrix = (matrix / matrix.sum(-1, keepdim=True))[:, None]
    return matrix @ x @ matrix.mT
