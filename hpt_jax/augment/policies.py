"""Which augmentations a view goes through: the six policies of the paper."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Policy:
    """The augmentations of one view; the defaults are MoCo-v2's (arXiv 2003.04297).

    Attributes:
      crop_scale: smallest and largest area of the crop, fractions of the image's.
      crop_ratio: smallest and largest width / height of the crop.
      brightness: jitter's factor is uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: the same for contrast.
      saturation: the same for saturation.
      hue: jitter's turn of the hue is uniform in [-hue, hue], in full turns, at most 0.5.
      jitter_probability: how often the colours are jittered.
      grayscale_probability: how often the colours are dropped.
      blur_sigma: smallest and largest standard deviation of the blur, pixels of the view.
      blur_probability: how often the view is blurred.
      flip_probability: how often the view is mirrored left to right.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 0.5
    flip_probability: float = 0.5


# `faithful` has the hue of the HPT authors' configs; the last four are the paper's study of
# robustness to the augmentation policy, each without one more operation or two.
POLICIES: dict[str, Policy] = {
    "moco_v2": Policy(),
    "faithful": Policy(hue=0.4),
    "no_grayscale": Policy(grayscale_probability=0.0),
    "no_color": Policy(jitter_probability=0.0),
    "crop_blur": Policy(jitter_probability=0.0, grayscale_probability=0.0, flip_probability=0.0),
    "crop": Policy(
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=0.0,
        flip_probability=0.0,
    ),
}


# In the order of the paper's figure: each without one more operation or two.
ROBUSTNESS = ("moco_v2", "no_grayscale", "no_color", "crop_blur", "crop")


def for_channels(policy: Policy, channels: int) -> tuple[Policy, tuple[str, ...]]:
    """Switches off what has no meaning for images that are not RGB.

    Args:
      policy: any policy.
      channels: how many channels the images have.

    Returns:
      the policy, with saturation, hue and grayscale off unless there are three channels; and the
      names of those of the three that this switched off.
    """
    if channels == 3:
        return policy, ()
    jittered = policy.jitter_probability > 0
    was_on = {
        "saturation": jittered and policy.saturation > 0,
        "hue": jittered and policy.hue > 0,
        "grayscale": policy.grayscale_probability > 0,
    }
    policy = dataclasses.replace(policy, saturation=0.0, hue=0.0, grayscale_probability=0.0)
    return policy, tuple(name for name, on in was_on.items() if on)
