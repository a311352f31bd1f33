"""Decoding image files."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, ImageOps

from hpt_jax.data.images import Unreadable

# What Pillow and the operating system document or raise for a damaged file; anything else is a
# bug and keeps its traceback.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def decode(path: str) -> np.ndarray:
    """Decodes an image file as a viewer shows it: upright, its first frame, without alpha.

    Args:
      path: the file.

    Returns:
      u8[h, w, 1] for bilevel and grey images, u8[h, w, 3] RGB for all others.

    Raises:
      Unreadable: the file is absent, damaged, cut short, or has 16-bit pixels.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I") or image.mode == "F":
                raise Unreadable(path, "16-bit pixels are not supported yet")
            ImageOps.exif_transpose(image, in_place=True)
            # A transparent colour would make Pillow warn, and alpha is dropped anyway.
            image.info.pop("transparency", None)
            grey = image.mode in ("1", "L", "LA")
            pixels = np.array(image.convert("L" if grey else "RGB"))
    except _DAMAGED as error:
        raise Unreadable(path, _reason(error)) from error
    return pixels[:, :, None] if grey else pixels


def _reason(error: BaseException) -> str:
    """One line for a message; without the path, which stands beside it."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
