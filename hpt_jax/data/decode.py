"""Decoding image files: 8 and 16 bit, grey, RGB and any number of bands; DICOM in `data.dicom`."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import struct
import threading
import warnings
from collections.abc import Iterator

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageOps

from hpt_jax.data.dicom import decode_dicom, is_dicom
from hpt_jax.data.images import Unreadable

# What Pillow, tifffile, imagecodecs (whose codecs' errors are RuntimeErrors) and the operating
# system document or raise for a damaged file; anything else is a bug and keeps its traceback.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    struct.error,
    MemoryError,  # asked for by a header that says more than the file holds
    Image.DecompressionBombError,
)
# tifffile computes with what a file's tags say, whatever it is.
_CREDULOUS = (IndexError, KeyError, TypeError, AttributeError, ArithmeticError, MemoryError)
# Pillow knows more, one of which has another program run what stands in the file.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MOST_BYTES = 2**32  # of a file: as many as the largest image takes, decoded
# What they warn of is decoded all the same, or is unreadable and told with the file's name.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_SIDEWAYS = (5, 6, 7, 8)  # orientations of EXIF and TIFF that swap height and width
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)


class _Room:
    """Lets threads in as long as they take no more together than there is; one always may."""

    def __init__(self, most: int):
        self._most, self._taken = most, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Waits for the room, and holds it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + amount <= self._most)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()


# Bytes of files and of what they are decoded to, held at one time by all threads. Who waits for the
# second may hold some of the first, and never the other way round.
_FILES, _PIXELS = _Room(2**30), _Room(2**30)
# Bytes a pixel on the way: Pillow's own four, and a turned copy of them and the result's three, or
# what a transparent image is laid on and its colours, four each.
_PILLOW_BYTES = 12
_PNG16_BYTES = 8
_DICOM_BYTES = 16  # a byte of the file


def decode(file: str | bytes, name: str = "", short_side: int = 0) -> np.ndarray:
    """Decodes an image as a viewer shows it: upright, its first frame, on white if transparent.

    On white are PNG, WebP and GIF of 8 bits; elsewhere alpha is dropped, and colours are kept.

    Args:
      file: the path of a file, or a file's content.
      name: how messages call it; by default the path.
      short_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which takes a fraction of
        the time, as long as its short side keeps this many pixels; 0: at its full size. The pixels
        then differ a little from those of a full decode that is reduced afterwards.

    Returns:
      u8 or u16 [h, w, c]: 1 channel for bilevel and grey images, 3 (RGB) for colour; all the bands
      of a TIFF that is neither.

    Raises:
      Unreadable: the file is absent, damaged or cut short, or its pixels are not unsigned 8-bit or
        16-bit numbers.
    """
    try:
        if isinstance(file, str):
            with open(file, "rb") as opened, _FILES.taking(_size(opened)):
                pixels = _decoded(opened.read(), short_side)
        else:
            pixels = _decoded(file, short_side)
    except _DAMAGED as error:
        raise Unreadable(name or str(file), _reason(error)) from error
    if pixels.dtype not in (np.uint8, np.uint16):
        raise Unreadable(
            name or str(file), f"its pixels are {pixels.dtype}, not unsigned 8-bit or 16-bit"
        )
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def whole_size(file: str | bytes, name: str = "") -> tuple[int, int] | None:
    """(height, width) of a JPEG, upright, from its header: what `decode` gives at full size.

    Args:
      file: as in `decode`.
      name: as in `decode`.

    Returns:
      None for files of other kinds, which `decode` always gives at full size.

    Raises:
      Unreadable: the header cannot be read.
    """
    try:
        with open(file, "rb") if isinstance(file, str) else io.BytesIO(file) as content:
            if content.read(len(_JPEG)) != _JPEG:
                return None
            content.seek(0)
            with Image.open(content, formats=("JPEG",)) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
                width, height = image.size
    except _DAMAGED as error:
        raise Unreadable(name or str(file), _reason(error)) from error
    return (width, height) if turned else (height, width)


def _size(file: io.BufferedReader) -> int:
    """Bytes of a file; refuses what is too large."""
    size = os.fstat(file.fileno()).st_size
    if size > _MOST_BYTES:
        raise ValueError(f"larger than {_MOST_BYTES >> 30} GiB")
    return size


def _decoded(content: bytes, short_side: int) -> np.ndarray:
    if is_dicom(content):  # first: it may begin as a TIFF does
        with _PIXELS.taking(_DICOM_BYTES * len(content)):
            return decode_dicom(content)
    if content.startswith(_TIFF):
        return _tiff(content)
    if content.startswith(_PNG) and content[24:25] == b"\x10":
        return _png16(content)
    return _ordinary(content, short_side)


def _check_size(pixels: int) -> None:
    """Refuses what Pillow would refuse."""
    if pixels > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
        raise Image.DecompressionBombError


def _ordinary(content: bytes, short_side: int) -> np.ndarray:
    """By Pillow: everything of 8 bits, and grey of 16."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        whole = image.size
        if short_side and image.format == "JPEG":
            width, height = image.size
            short = min(image.size)
            image.draft(None, (width * short_side // short, height * short_side // short))
        with _PIXELS.taking(_PILLOW_BYTES * math.prod(image.size)):
            if image.size == whole and _is_plain_jpeg(image, content):
                with contextlib.suppress(imagecodecs.Jpeg8Error):  # Pillow has the last word
                    pixels = imagecodecs.jpeg8_decode(content)
                    return _upright(pixels, image.getexif().get(ExifTags.Base.Orientation))
            return _shown(image)


def _is_plain_jpeg(image: Image.Image, content: bytes) -> bool:
    """Whether libjpeg-turbo alone gives Pillow's very pixels, in two thirds of the time.

    Pillow tells a file that is cut short, libjpeg-turbo paints the rest grey: only where one scan
    goes up to the file's end do they have nothing to disagree about.
    """
    return (
        image.format == "JPEG"
        and image.mode in ("L", "RGB")
        and not image.info.get("progressive")
        and content.endswith(_JPEG_END)
    )


def _shown(image: Image.Image) -> np.ndarray:
    """An opened image upright, its palette resolved, and on white where it is transparent."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        pixels = np.array(image)
        # Pillow widens PGM files of 16 bits.
        return pixels.astype(np.uint16) if image.format == "PPM" else pixels
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    # Elsewhere alpha is a mask of what has no data, or was never meant.
    if image.has_transparency_data and image.format in ("PNG", "WEBP", "GIF"):
        return np.array(_on_white(image, mode))
    return np.array(image if image.mode == mode else image.convert(mode))


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """What is seen of a transparent image: colours below it are whatever its program left there."""
    ground = Image.new(mode, image.size, "white")
    image = image if image.mode == f"{mode}A" else image.convert(f"{mode}A")
    ground.paste(image, mask=image)
    return ground


def _png16(content: bytes) -> np.ndarray:
    """A PNG of 16 bits, which Pillow would cut down to 8 where it has colours."""
    size = math.prod(struct.unpack_from(">II", content, 16))
    _check_size(size)
    with _PIXELS.taking(_PNG16_BYTES * size):
        pixels = imagecodecs.png_decode(content)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    pixels = pixels[:, :, : channels - 1] if channels in (2, 4) else pixels  # alpha is the last
    exif = Image.Exif()
    exif.load(_png_chunk(content, b"eXIf"))
    return _upright(pixels, exif.get(ExifTags.Base.Orientation))


def _png_chunk(content: bytes, kind: bytes) -> bytes:
    """The first chunk of a kind; empty where there is none."""
    place = len(_PNG)
    while place + 8 <= len(content):
        size, found = struct.unpack_from(">I4s", content, place)
        if found == kind:
            return content[place + 8 : place + 8 + size]
        place += 12 + size  # a checksum follows
    return b""


def _upright(pixels: np.ndarray, orientation: object) -> np.ndarray:
    """Turns [h, w] or [h, w, c] as the tag of EXIF and TIFF says; beyond 1 to 8 it says nothing."""
    if orientation in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _tiff(content: bytes) -> np.ndarray:
    """By Pillow what it knows: palettes, bilevel, CMYK, 8-bit grey and RGB; the rest by bands."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages.first
            bands = page.samplesperpixel - sum(extra in _ALPHA for extra in page.extrasamples)
            cmyk = page.photometric == tifffile.PHOTOMETRIC.SEPARATED
            if page.dtype in (np.bool_, np.uint8) and (bands in (1, 3) or cmyk):
                return _ordinary(content, 0)
            _check_size(page.imagewidth * page.imagelength)
            _check_size(page.tilewidth * page.tilelength)
            if page.nbytes > _MOST_BYTES:
                raise ValueError(f"larger than {_MOST_BYTES >> 30} GiB")
            with _PIXELS.taking(page.nbytes):
                pixels = page.asarray(maxworkers=1)
            orientation = page.tags.valueof("Orientation")
    except _CREDULOUS as error:
        raise ValueError("damaged TIFF tags") from error
    if pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        pixels = np.moveaxis(pixels, 0, -1)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
        pixels = 2**page.bitspersample - 1 - pixels
    if pixels.ndim not in (2, 3):
        raise ValueError(f"its pixels have the shape {pixels.shape}")
    return _upright(pixels[:, :, :bands] if pixels.ndim == 3 else pixels, orientation)


def _reason(error: BaseException) -> str:
    """One line for a message; without the path, which stands beside it."""
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"more than {most:,} pixels, or a decompression bomb: cut it into tiles"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
