"""DICOM, by pydicom where it is installed. Only what describes the pixels is read, never a patient.

Values become unsigned, the same way in every file of a set, so that its images stay comparable:

- Grey of 8 bits or fewer becomes u8, of 9 to 16 bits u16, stretched to the whole range by the bits
  stored; signed values become u16, plus 32768.
- CT with a rescale slope and intercept becomes u16: Hounsfield units, at least -1024, plus 1024.
  Other scales are left out: they often differ from file to file (PET), and may be so small that
  rounding would leave little.
- MONOCHROME1, where zero is white, is inverted. Colour, palettes too, becomes RGB.
- The presentation's own window is not applied: the set's window takes its place (`data.window`).
- Of several frames the middle one is taken: the first of a volume often shows no more than air, and
  the first of a film no contrast yet.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
import struct
import warnings
import zlib
from typing import Any

import numpy as np

SUFFIXES = (".dcm", ".dicom")
_MAGIC, _PLACE = b"DICM", 128
_INDEX = "DICOMDIR"  # a list of other files
_COLOURS = ("Red", "Green", "Blue")
_TAGS = (
    "Modality", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames",
    "RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    "PixelData",
)  # fmt: skip
_AIR = -1024  # the least Hounsfield unit; below it scanners pad
_PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
# What pydicom and its plugins raise for damaged files.
_DAMAGED = (
    ArithmeticError, AttributeError, BufferError, EOFError, LookupError, NotImplementedError,
    OSError, RuntimeError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


def installed() -> bool:
    """Whether pydicom is there."""
    return importlib.util.find_spec("pydicom") is not None


def is_dicom(content: bytes) -> bool:
    """Whether a file that begins so is DICOM."""
    return content[_PLACE : _PLACE + len(_MAGIC)] == _MAGIC


def named_as_dicom(path: str, name: str) -> bool:
    """Whether a file is DICOM by its suffix, or without one by its first bytes.

    Scanners give files no suffix, or the last number of an identifier.

    Args:
      path: of a regular file.
      name: its own.
    """
    if name.lower().endswith(SUFFIXES):
        return True
    _, dot, suffix = name.rpartition(".")
    if name == _INDEX or (dot and not suffix.isdecimal()):
        return False
    try:
        with open(path, "rb") as file:
            return is_dicom(file.read(_PLACE + len(_MAGIC)))
    except OSError:
        return False


def decode_dicom(content: bytes) -> np.ndarray:
    """The pixels of a file, u8 or u16[h, w] or [h, w, 3].

    Raises:
      ValueError: it has none that can be had; says why, in words that quote nothing of the file.
    """
    if not installed():
        raise ValueError("a DICOM file, which needs pydicom: pip install pydicom")
    from pydicom import errors

    try:
        header = _pydicom().dcmread(io.BytesIO(content), specific_tags=list(_TAGS))
        pixels = _frame(header)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            return _coloured(pixels, header)
        return _grey(pixels, header) if pixels.ndim == 2 else _filled(pixels, header)
    except _Undecodable:
        raise
    except (*_DAMAGED, errors.BytesLengthException, errors.InvalidDicomError) as error:
        raise ValueError(f"a damaged DICOM file ({type(error).__name__})") from None


@functools.cache
def _pydicom() -> Any:
    """The package; its warnings would quote what stands in a file."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").disabled = True
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    return pydicom


class _Undecodable(ValueError):
    """A file that is whole, and whose pixels cannot be had."""


def _frame(header: Any) -> np.ndarray:
    """The stored values of the middle frame."""
    from pydicom.pixels import get_decoder, pixel_array

    if "PixelData" not in header:
        raise _Undecodable("a DICOM file without pixels")
    syntax, frames = header.file_meta.TransferSyntaxUID, int(header.get("NumberOfFrames") or 1)
    needs = f"a DICOM file in {syntax.name}, which needs another decoder: {_PLUGINS}"
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise _Undecodable(needs)
    try:
        return pixel_array(header, index=frames // 2)
    except RuntimeError:  # of the decoders that are there, none could
        raise _Undecodable(f"damaged, or {needs}") from None


def _grey(pixels: np.ndarray, header: Any) -> np.ndarray:
    """One value a pixel, see above."""
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    scale = _scale(header) if header.get("Modality") == "CT" else None
    if scale is None and header.PixelRepresentation == 0:
        most = 2**header.BitsStored - 1
        return _filled(most - np.minimum(pixels, most) if inverted else pixels, header)
    values = pixels.astype(np.float64)
    if scale:
        values = np.maximum(np.rint(scale[0] * values + scale[1]), _AIR) - _AIR
    else:
        values += 2**15
    values = np.clip(values, 0, 2**16 - 1)
    return (2**16 - 1 - values if inverted else values).astype(np.uint16)


def _filled(pixels: np.ndarray, header: Any) -> np.ndarray:
    """Unsigned values of some bits, stretched to all of 8 or 16, rounding half up."""
    bits = header.BitsStored
    if pixels.dtype.kind != "u" or bits > 16:
        raise _Undecodable(f"its pixels are {pixels.dtype.name}, not unsigned 8-bit or 16-bit")
    kind, top = (np.uint8, 255) if bits <= 8 else (np.uint16, 65535)
    most = 2**bits - 1
    if most == top:
        return pixels.astype(kind)
    table = (np.arange(most + 1) * 2 * top + most) // (2 * most)
    return table.astype(kind)[np.minimum(pixels, most)]


def _coloured(pixels: np.ndarray, header: Any) -> np.ndarray:
    """A palette's colours, u8[h, w, 3]."""
    from pydicom.pixels import apply_color_lut

    colours = apply_color_lut(pixels, header)
    return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours


def _scale(header: Any) -> tuple[float, float] | None:
    """Slope and intercept, of the file or of what its frames share."""
    shared = header.get("SharedFunctionalGroupsSequence") or [{}]
    framed = header.get("PerFrameFunctionalGroupsSequence") or [{}]
    for place in (header, shared[0], framed[len(framed) // 2]):
        here = (place.get("PixelValueTransformationSequence") or [place])[0]
        if here.get("RescaleSlope") is not None:
            return float(here.RescaleSlope), float(here.get("RescaleIntercept") or 0)
    return None
