"""Promises of decoding: every format, 8 and 16 bit, and what cannot be decoded."""

import concurrent.futures
import io
import struct
import threading
import time
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from hpt_jax.data import decode as decode_lib
from hpt_jax.data.decode import decode
from hpt_jax.data.images import Unreadable

RNG = np.random.default_rng(0)

COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_colour_comes_back_as_written(tmp_path, suffix):
    Image.fromarray(COLOUR).save(tmp_path / f"a.{suffix}", lossless=True)
    np.testing.assert_array_equal(decode(str(tmp_path / f"a.{suffix}")), COLOUR)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm"])
def test_grey_comes_back_with_one_channel(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(decode(str(tmp_path / f"a.{suffix}")), GREY[..., None])


def test_bilevel_images_are_grey_of_0_and_255(tmp_path):
    Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        decode(str(tmp_path / "a.png")), np.where(GREY > 127, 255, 0)[..., None]
    )


def on_white(colours, alpha):
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_what_is_transparent_is_seen_on_white(tmp_path, kind):
    more = {"lossless": True, "exact": True} if kind == "webp" else {}
    Image.fromarray(np.dstack([COLOUR, ALPHA])).save(tmp_path / f"rgba.{kind}", **more)
    found = decode(str(tmp_path / f"rgba.{kind}"))
    assert (found.dtype, found.shape) == (np.uint8, COLOUR.shape)
    np.testing.assert_allclose(found, on_white(COLOUR, ALPHA), atol=0.51)


@pytest.mark.filterwarnings("error")
def test_a_transparent_grey_image_stays_grey(tmp_path):
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]).save(tmp_path / "la.png")
    expected = on_white(GREY[..., None], ALPHA)
    np.testing.assert_allclose(decode(str(tmp_path / "la.png")), expected, atol=0.51)
    Image.fromarray(GREY).save(tmp_path / "l.png", transparency=int(GREY[0, 0]))
    expected = np.where(GREY[0, 0] == GREY, 255, GREY)[..., None]
    np.testing.assert_array_equal(decode(str(tmp_path / "l.png")), expected)
    Image.fromarray(GREY > 127).save(tmp_path / "1.png", transparency=0)
    np.testing.assert_array_equal(decode(str(tmp_path / "1.png")), np.full((5, 7, 1), 255))


@pytest.mark.filterwarnings("error")
def test_one_transparent_colour_is_white(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png", transparency=tuple(map(int, COLOUR[2, 3])))
    expected = np.where((COLOUR[2, 3] == COLOUR).all(-1, keepdims=True), 255, COLOUR)
    np.testing.assert_array_equal(decode(str(tmp_path / "a.png")), expected)


def test_alpha_that_a_bmp_never_meant_hides_nothing(tmp_path):
    Image.fromarray(np.dstack([COLOUR, 0 * ALPHA])).save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(decode(str(tmp_path / "a.bmp")), COLOUR)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["png", "gif"])
@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_a_palette_becomes_its_colours(tmp_path, kind, transparency):
    if kind == "gif" and isinstance(transparency, bytes):
        pytest.skip("a GIF has one transparent colour")
    palette = np.array([[255, 0, 0], [0, 200, 10], [7, 8, 9]], np.uint8)
    places = RNG.integers(0, 3, (5, 7), dtype=np.uint8)
    image = Image.fromarray(places)
    image.putpalette(palette.tobytes())
    more = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / f"a.{kind}", **more)
    with Image.open(tmp_path / f"a.{kind}") as written:
        assert written.mode == "P"
    alpha = {None: [255, 255, 255], 1: [255, 0, 255]}.get(transparency, [0, 128, 255])
    expected = on_white(palette[places], np.array(alpha)[places])
    np.testing.assert_allclose(decode(str(tmp_path / f"a.{kind}")), expected, atol=0.51)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (4, 3), (255, 0, 0, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(
        decode(str(tmp_path / "a.tif")), np.broadcast_to([0, 255, 255], (3, 4, 3))
    )


DEEP = RNG.integers(0, 65536, (5, 7, 13), dtype=np.uint16)

TURNED = pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
    ],
)


@TURNED
def test_images_are_turned_as_their_exif_tag_says(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode(str(tmp_path / "a.png")), upright(COLOUR))


def deep_png(pixels, orientation, after=False):
    """A PNG of 16 bits with an EXIF chunk before or after its pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    whole = imagecodecs.png_encode(pixels)
    place = whole.index(b"IEND" if after else b"IDAT") - 4
    return whole[:place] + chunk + whole[place:]


@TURNED
def test_deep_and_many_banded_images_are_turned_too(orientation, upright):
    for after in (False, True):
        content = deep_png(DEEP[:, :, :3].copy(), orientation, after)
        np.testing.assert_array_equal(decode(content), upright(DEEP[:, :, :3]))
    content = deep_png(DEEP[:, :, 0].copy(), orientation)
    np.testing.assert_array_equal(decode(content), upright(DEEP[:, :, :1]))
    tag = (274, "H", 1, orientation, True)
    for kind, bands in [(np.uint8, 1), (np.uint8, 13), (np.uint16, 1), (np.uint16, 13)]:
        pixels = DEEP[:, :, :bands].astype(kind)
        for planar in ("contig", "separate") if bands > 1 else (None,):
            written = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
            file = io.BytesIO()
            tifffile.imwrite(
                file,
                written[:, :, 0] if bands == 1 else written,
                photometric="minisblack",
                planarconfig=planar,
                extratags=[tag],
            )
            np.testing.assert_array_equal(decode(file.getvalue()), upright(pixels))


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(
        decode(str(tmp_path / "a.gif")), np.broadcast_to([255, 0, 0], (3, 4, 3))
    )


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32])
def test_pixels_that_are_no_small_unsigned_numbers_are_unreadable(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.arange(12, dtype=dtype).reshape(3, 4))
    with pytest.raises(Unreadable, match="not unsigned 8-bit or 16-bit"):
        decode(str(tmp_path / "a.tif"))


def test_sixteen_bits_of_a_png_are_kept(tmp_path):
    for channels, kept in [(1, 1), (2, 1), (3, 3), (4, 3)]:  # an even number has alpha
        content = imagecodecs.png_encode(DEEP[:, :, :channels].squeeze().copy())
        (tmp_path / "a.png").write_bytes(content)
        for found in (decode(str(tmp_path / "a.png")), decode(content, "a")):
            assert found.dtype == np.uint16
            np.testing.assert_array_equal(found, DEEP[:, :, :kept])


def test_sixteen_bits_of_a_pgm_are_kept(tmp_path):
    header = b"P5 7 5 65535\n"
    (tmp_path / "a.pgm").write_bytes(header + DEEP[..., 0].astype(">u2").tobytes())
    found = decode(str(tmp_path / "a.pgm"))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, DEEP[..., :1])


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 13])
def test_every_band_of_a_tiff_is_kept(tmp_path, bands, dtype, planar, compression):
    pixels = (DEEP >> (8 if dtype is np.uint8 else 0)).astype(dtype)[:, :, :bands]
    written = pixels[:, :, 0] if bands == 1 else pixels
    if planar == "separate" and bands > 1:
        written = np.moveaxis(pixels, -1, 0)
    more = {} if bands == 1 else {"planarconfig": planar}
    tifffile.imwrite(
        tmp_path / "a.tif",
        written,
        photometric="rgb" if bands == 3 else "minisblack",
        compression=compression,
        **more,
    )
    found = decode(str(tmp_path / "a.tif"))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("extra", "kept"), [("unassalpha", 3), ("unspecified", 4)])
def test_the_fourth_sample_of_a_tiff_is_alpha_or_a_band_as_its_tag_says(
    tmp_path, dtype, extra, kept
):
    pixels = (DEEP >> (8 if dtype is np.uint8 else 0)).astype(dtype)[:, :, :4]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[extra])
    np.testing.assert_array_equal(decode(str(tmp_path / "a.tif")), pixels[:, :, :kept])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_shown_the_right_way_round(dtype):
    pixels = np.array([[0, 1, 7], [np.iinfo(dtype).max, 100, 200]], dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="miniswhite")
    found = decode(file.getvalue())
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[:, :, 0], np.iinfo(dtype).max - pixels)


def test_a_tiff_without_a_page_is_unreadable():
    with pytest.raises(Unreadable, match="damaged TIFF tags"):
        decode(b"II*\0" + b"\xff" * 40, "empty.tif")


def test_damaged_bytes_give_pixels_or_are_unreadable_and_never_a_traceback():
    """Thousands of files with a few bytes changed, mostly in the headers."""
    file = io.BytesIO()
    tifffile.imwrite(file, DEEP, photometric="minisblack", planarconfig="contig")
    whole = [file.getvalue(), deep_png(DEEP[:, :, :3].copy(), 6)]
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        file = io.BytesIO()
        Image.fromarray(COLOUR).save(file, kind)
        whole.append(file.getvalue())
    rng = np.random.default_rng(0)
    outcomes = {True: 0, False: 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(4000):
            content = bytearray(whole[turn % len(whole)])
            for place in rng.integers(0, len(content) >> int(rng.integers(3)), 3):
                content[place] = rng.integers(256)
            try:
                pixels = decode(bytes(content), "damaged", 3)
            except Unreadable:
                outcomes[False] += 1
            else:
                assert pixels.ndim == 3
                assert pixels.dtype in (np.uint8, np.uint16)
                outcomes[True] += 1
    assert min(outcomes.values()) > 400  # else the test would show one side only


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_deep_file_cut_short_is_unreadable(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(DEEP[:, :, :3].copy()))
    else:
        tifffile.imwrite(
            path, DEEP, photometric="minisblack", planarconfig="contig", compression="zlib"
        )
    whole = path.read_bytes()
    for keep in (len(whole) // 2, 60, 30):
        path.write_bytes(whole[:keep])
        with pytest.raises(Unreadable) as caught:
            decode(str(path))
        assert "\n" not in caught.value.reason


def jpeg(height, width, quality=95, **more):
    smooth = RNG.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **more)
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "short_side", "scale"),
    [
        ((400, 300), 0, 1),
        ((400, 300), 151, 1),
        ((400, 300), 150, 2),
        ((300, 401), 75, 4),
        ((403, 300), 10, 8),
        ((100, 100), 500, 1),
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_needed_and_never_smaller(size, short_side, scale):
    content = jpeg(*size)
    found = decode(content, "a", short_side)
    assert found.shape == (*(-(-side // scale) for side in size), 3)
    assert min(found.shape[:2]) >= min(short_side, *size)
    whole = decode(content, "a")
    if scale == 1:
        np.testing.assert_array_equal(found, whole)
    else:
        shrunk = Image.fromarray(whole).reduce(scale)
        assert np.abs(np.asarray(shrunk, int) - found.astype(int)).mean() < 2


def test_a_reduced_jpeg_is_turned_as_its_exif_tag_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(jpeg(200, 320, exif=exif), "a", 100).shape == (160, 100, 3)


def by_pillow(content):
    """What Pillow makes of a JPEG; None where it refuses."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright if upright.mode == "L" else upright.convert("RGB"))
    except Exception:
        return None
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def jpegs(count):
    """Small JPEGs of all kinds: grey, RGB, CMYK, sampled each way, turned, progressive ..."""
    rng = np.random.default_rng(0)
    for turn in range(count):
        height, width = rng.integers(1, 70, 2)
        smooth = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        image = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
        image = image.convert(("L", "RGB", "RGB", "RGB", "CMYK")[turn % 5])
        more = {"keep_rgb": True} if turn % 5 == 3 else {}
        if turn % 5 in (1, 2):
            more["subsampling"] = int(rng.integers(3))
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(10))
        file = io.BytesIO()
        image.save(
            file,
            "JPEG",
            quality=int(rng.integers(5, 100)),
            progressive=bool(turn % 3 == 0),
            restart_marker_blocks=int(rng.integers(4)),
            exif=exif,
            **more,
        )
        yield file.getvalue()


def test_the_pixels_of_every_jpeg_are_pillows():
    for content in jpegs(200):
        np.testing.assert_array_equal(decode(content, "a"), by_pillow(content))


@pytest.mark.filterwarnings("ignore")  # Pillow tells of damaged EXIF
def test_of_a_damaged_jpeg_comes_what_pillow_makes_of_it():
    rng = np.random.default_rng(0)
    outcomes = {True: 0, False: 0}
    for turn, whole in enumerate(jpegs(1500)):
        content, place = bytearray(whole), int(rng.integers(2, len(whole)))
        if turn % 3 == 0:
            del content[place:]
        elif turn % 3 == 1:
            del content[place : place + int(rng.integers(1, 20))]
        else:
            for other in rng.integers(len(content) >> int(rng.integers(3)), size=3):
                content[other] = rng.integers(256)
        expected = by_pillow(bytes(content))
        outcomes[expected is None] += 1
        if expected is None:
            with pytest.raises(Unreadable):
                decode(bytes(content), "a")
        else:
            np.testing.assert_array_equal(decode(bytes(content), "a"), expected)
    assert min(outcomes.values()) > 300  # else the test would show one side only


def test_threads_decode_alike():
    contents = [jpeg(90, 120), imagecodecs.png_encode(DEEP[:, :, :3].copy())] * 8
    alone = [decode(content, "a", 40) for content in contents]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda content: decode(content, "a", 40), contents))
    for some, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(some, other)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "ppm"])
def test_a_file_cut_short_is_unreadable_not_grey(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for keep in (len(whole) // 2, 20, 0):
        path.write_bytes(whole[:keep])
        with pytest.raises(Unreadable) as caught:
            decode(str(path))
        assert caught.value.path == str(path)
        assert caught.value.reason


def test_what_is_no_image_is_unreadable(tmp_path):
    (tmp_path / "a.png").write_text("plain words")
    with pytest.raises(Unreadable, match="not an image file"):
        decode(str(tmp_path / "a.png"))
    with pytest.raises(Unreadable, match="No such file"):
        decode(str(tmp_path / "b.png"))


def test_an_image_of_dangerous_size_is_unreadable(tmp_path, monkeypatch):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Unreadable, match="decompression bomb"):
        decode(str(tmp_path / "a.png"))


def test_threads_hold_no_more_than_there_is_room_for_and_a_large_one_waits_for_all():
    room, lock, held, most = decode_lib._Room(100), threading.Lock(), [], []

    def take(amount):
        with room.taking(amount):
            with lock:
                held.append(amount)
                most.append(sum(held))
            time.sleep(0.001)
            with lock:
                held.remove(amount)

    amounts = [*RNG.integers(1, 60, 60).tolist(), 250, 300]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(take, amounts))
    assert sorted(most)[-2:] == [250, 300]  # alone: there is never room
    assert sorted(most)[-3] <= 100
    assert max(most) > max(amounts[:60])  # else the test would see one thread alone
