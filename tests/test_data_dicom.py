"""Promises of DICOM: values as documented, from files that pydicom wrote and that it ships."""

import io
import random

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset, FileMetaDataset

from hpt_jax.data import dicom
from hpt_jax.data.datasets import open_dataset
from hpt_jax.data.decode import decode
from hpt_jax.data.images import Unreadable

RNG = np.random.default_rng(0)
TWELVE = RNG.integers(0, 2**12, (9, 7), np.uint16)
SIGNED = RNG.integers(-(2**15), 2**15, (9, 7), np.int16)
COLOUR = RNG.integers(0, 256, (9, 7, 3), np.uint8)


def written(pixels, kind="MONOCHROME2", bits=None, syntax=uid.ExplicitVRLittleEndian, **tags):
    """A file that pydicom wrote, as its content."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.SOPClassUID = uid.SecondaryCaptureImageStorage
    made.PatientName, made.PatientID = "SECRET^NAME", "SECRET-ID"
    made.set_pixel_data(pixels, kind, bits or 8 * pixels.itemsize)
    if syntax.is_compressed and syntax.is_encapsulated:
        made.compress(syntax)
    made.file_meta.TransferSyntaxUID = syntax
    for name, value in tags.items():
        setattr(made, name, value)
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def read(content):
    found = decode(content, "x.dcm")
    return found[:, :, 0] if found.shape[2] == 1 else found


def test_stored_bits_fill_eight_or_sixteen():
    eight = RNG.integers(0, 256, (9, 7), np.uint8)
    np.testing.assert_array_equal(read(written(eight)), eight)
    five = eight >> 3
    np.testing.assert_array_equal(
        read(written(five, bits=5)), np.floor(five.astype(int) * 255 / 31 + 0.5).astype(np.uint8)
    )
    found = read(written(TWELVE, bits=12))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, np.floor(TWELVE.astype(int) * 65535 / 4095 + 0.5))
    whole = TWELVE * 16 + 5
    np.testing.assert_array_equal(read(written(whole)), whole)


def test_zero_is_black_in_every_file():
    inverse = read(written(4095 - TWELVE, "MONOCHROME1", bits=12))
    np.testing.assert_array_equal(inverse, read(written(TWELVE, bits=12)))


def test_hounsfield_units_are_offset_and_air_is_zero():
    raw = np.array([[0, 24, 1024, 4095]], np.uint16)
    scaled = {"RescaleSlope": 1, "RescaleIntercept": -1024, "Modality": "CT"}
    np.testing.assert_array_equal(read(written(raw, **scaled)), [[0, 24, 1024, 4095]])
    signed = np.array([[-2000, -1024, -1000, 0, 3071]], np.int16)
    found = read(written(signed, Modality="CT", RescaleSlope=1, RescaleIntercept=0))
    np.testing.assert_array_equal(found, [[0, 0, 24, 1024, 4095]])


def test_signed_values_and_rescaled_ones_keep_their_order_and_zero():
    np.testing.assert_array_equal(read(written(SIGNED)), SIGNED.astype(np.int64) + 2**15)
    found = read(written(TWELVE, bits=12, Modality="CT", RescaleSlope=0.5, RescaleIntercept=-100))
    expected = np.clip(np.rint(0.5 * TWELVE - 100) + 1024, 0, 2**16 - 1)
    np.testing.assert_array_equal(found, expected)
    for slope in (0.001, 1, 2.5):  # as PET has them, other ones in each file
        scaled = read(written(TWELVE, bits=12, RescaleSlope=slope, RescaleIntercept=7))
        np.testing.assert_array_equal(scaled, read(written(TWELVE, bits=12)))


def test_colours_are_kept():
    np.testing.assert_array_equal(read(written(COLOUR, "RGB")), COLOUR)
    deep = RNG.integers(0, 2**16, (9, 7, 3), np.uint16)
    np.testing.assert_array_equal(read(written(deep, "RGB")), deep)


def test_of_several_frames_the_middle_one_is_taken():
    frames = RNG.integers(0, 256, (5, 9, 7), np.uint8)
    np.testing.assert_array_equal(read(written(frames)), frames[2])


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.DeflatedExplicitVRLittleEndian])
def test_compressed_files_give_the_same_pixels(syntax):
    np.testing.assert_array_equal(
        read(written(TWELVE, bits=12, syntax=syntax)), read(written(TWELVE, bits=12))
    )


# (shape, dtype) of files that pydicom ships, and what is expected of each from pydicom's own pixels
SHIPPED = {
    "CT_small.dcm": lambda raw: np.maximum(raw.astype(int) - 1024, -1024) + 1024,
    "MR_small.dcm": lambda raw: raw.astype(int) + 2**15,
    "MR_small_bigendian.dcm": lambda raw: raw.astype(int) + 2**15,
    "MR_small_RLE.dcm": lambda raw: raw.astype(int) + 2**15,
    "MR_small_jp2klossless.dcm": lambda raw: raw.astype(int) + 2**15,
    "SC_rgb_rle.dcm": lambda raw: raw,
    "SC_rgb_rle_2frame.dcm": lambda raw: raw[1],
    "SC_rgb_rle_16bit.dcm": lambda raw: raw,
    "examples_rgb_color.dcm": lambda raw: raw,
    "examples_ybr_color.dcm": lambda raw: raw[15],
    "image_dfl.dcm": lambda raw: raw,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_files_that_pydicom_ships_are_read(name):
    path = f"{DATA_ROOT}/test_files/{name}"
    expected = SHIPPED[name](pydicom.dcmread(path).pixel_array)
    np.testing.assert_array_equal(read(path), expected)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rtplan.dcm", "without pixels"),
        ("test-SR.dcm", "without pixels"),
        ("rtdose.dcm", "uint32, not unsigned 8-bit or 16-bit"),
        ("MR_truncated.dcm", "damaged DICOM"),
        ("SC_rgb_jpeg_gdcm.dcm", r"JPEG Lossless.*pip install pylibjpeg"),
        ("MR_small_jpeg_ls_lossless.dcm", r"JPEG-LS Lossless.*pip install pylibjpeg"),
    ],
)
def test_what_cannot_be_read_says_why_and_what_to_do(name, says, monkeypatch):
    decoders = pydicom.pixels.get_decoder
    if "jpeg" in name:  # as if no plugin were there
        monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: Without(decoders(syntax)))
    with pytest.raises(Unreadable, match=says):
        decode(f"{DATA_ROOT}/test_files/{name}")


class Without:
    """A decoder that has no plugin."""

    is_available = False

    def __init__(self, decoder):
        self.UID = decoder.UID


def test_a_palette_becomes_its_colours():
    path = f"{DATA_ROOT}/test_files/examples_palette.dcm"
    shipped = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_color_lut(shipped.pixel_array, shipped) >> 8
    np.testing.assert_array_equal(read(path), expected)


def test_files_are_found_by_suffix_or_by_their_first_bytes(tmp_path):
    content = written(TWELVE)
    names = {"a.dcm", "b.DICOM", "IM-0001", "1.2.840.113619.2"}
    for name in names | {"DICOMDIR", "notes.txt"}:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README").write_text("no image")
    (tmp_path / "empty").write_bytes(b"")
    assert set(open_dataset(f"folder:{tmp_path}").images.paths) == names


def test_without_pydicom_a_file_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dicom, "installed", lambda: False)
    with pytest.raises(Unreadable, match="pip install pydicom"):
        decode(written(TWELVE), "x")


def test_damaged_bytes_give_pixels_or_are_unreadable_and_tell_nothing_of_the_patient(
    caplog, recwarn
):
    contents = [
        written(TWELVE, bits=12), written(COLOUR, "RGB"), written(TWELVE, syntax=uid.RLELossless),
        written(SIGNED, RescaleSlope=1, RescaleIntercept=5),
    ]  # fmt: skip
    draw, outcomes, told = random.Random(0), {True: 0, False: 0}, ""
    for turn in range(1200):
        content = bytearray(contents[turn % len(contents)])
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(132, len(content))] = draw.randrange(256)
        if turn % 5 == 0:
            del content[draw.randrange(132, len(content)) :]
        try:
            found = decode(bytes(content), "damaged")
        except Unreadable as error:
            told += str(error)
            outcomes[False] += 1
        else:
            assert found.dtype in (np.uint8, np.uint16)
            outcomes[True] += 1
    assert min(outcomes.values()) > 100
    told += caplog.text + "".join(str(one.message) for one in recwarn)
    assert "SECRET" not in told
