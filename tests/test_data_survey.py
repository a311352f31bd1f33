"""Promises of the survey: what it says of a dataset is so."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from hpt_jax.data import survey
from hpt_jax.data.datasets import open_dataset
from hpt_jax.data.images import ArrayImages, Dataset
from hpt_jax.data.statistics import pixel_statistics
from hpt_jax.errors import UserError

RNG = np.random.default_rng(0)


def noise(*shape, kind=np.uint8):
    return RNG.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


def save(folder, name, pixels, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def survey_of(folder, **options):
    return survey.survey(open_dataset(f"folder:{folder}"), **options)


def test_counts_sizes_and_kinds_are_those_of_the_files(tmp_path):
    sizes = [(20, 30), (40, 25), (21, 60)]
    for split, count in [("train", 9), ("test", 3)]:
        for index in range(count):
            height, width = sizes[index % 3]
            save(tmp_path, f"{split}/{'ab'[index % 2]}/{index}.png", noise(height, width, 3))
    save(tmp_path, "train/a/grey.png", noise(22, 22))
    found = survey_of(tmp_path)
    assert (found.images, found.looked_at, found.readable) == (13, 13, 13)
    assert (found.splits, found.cut) == ({"train": 10, "test": 3}, ("val",))
    assert found.pretrained_on == 10
    assert found.classes == {"a": 8, "b": 5}
    assert (found.heights, found.widths) == ((20, 21, 40), (22, 30, 60))
    assert found.short_sides == (20, 21, 25)
    assert (found.channels, found.depths, found.grey) == ({"1": 1, "3": 12}, {"8": 13}, 1)
    told = "\n".join(survey.lines(found))
    assert "10 train, 3 test (val cut from train); 2 classes of 5 (b) to 8 (a)" in told
    assert "20x22 to 40x60 px" in told
    assert "grey (1) and RGB (12), 8 bit" in told


def test_large_jpegs_are_decoded_small_and_told_at_their_whole_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path, "a.jpg", noise(600, 2100, 3))
    save(tmp_path, "b.jpg", noise(600, 2100, 3), exif=exif)
    found = survey_of(tmp_path)
    assert (found.heights, found.widths) == ((600, 1350, 2100), (600, 1350, 2100))
    assert found.short_sides == (600, 600, 600)


def test_duplicates_are_images_of_equal_pixels_whatever_their_files(tmp_path):
    one, other = noise(16, 16, 3), noise(16, 16, 3)
    save(tmp_path, "train/a/1.png", one)
    save(tmp_path, "train/a/2.bmp", one)
    save(tmp_path, "train/b/3.png", other)
    save(tmp_path, "train/b/4.png", one.reshape(8, 32, 3))  # the same bytes in another shape
    save(tmp_path, "test/a/5.png", one)
    save(tmp_path, "test/b/6.png", other[:, :, ::-1])
    found = survey_of(tmp_path)
    assert (found.copies, found.copies_in_test) == (2, 1)
    told = "\n".join(survey.lines(found))
    assert "duplicates  2 (1 of test also in train, and kept): train/a/1.png = test/a/5.png" in told


def test_images_of_one_colour_and_unreadable_ones_are_named(tmp_path):
    for index in range(4):
        save(tmp_path, f"{index}.png", noise(16, 16, 3))
    save(tmp_path, "flat.png", np.full((16, 16, 3), 77, np.uint8))
    gentle = np.full((16, 16, 3), 77, np.uint8)
    gentle[::2] += 8  # a deviation of 4 grey levels is none of these
    save(tmp_path, "gentle.png", gentle)
    (tmp_path / "broken.png").write_bytes(b"x")
    found = survey_of(tmp_path)
    assert (found.blank, found.unreadable) == (1, 1)
    assert (found.readable, found.pretrained_on) == (6, 6)
    told = "\n".join(survey.lines(found))
    assert "one colour  1: flat.png" in told
    assert "unreadable  1: broken.png: not an image file" in told


def test_a_set_of_sixteen_bits_has_its_range_and_its_blanks_within_it():
    pixels = RNG.integers(1000, 1400, (12, 16, 16, 1)).astype(np.uint16)
    pixels[3] = 1200
    found = survey.survey(dataset_of(pixels))
    assert found.depths == {"16": 12}
    low, high = found.window
    assert 1000 <= low < 1003
    assert 1396 < high < 1400
    assert found.blank_named == ("x[3]",)


def dataset_of(pixels):
    return Dataset("x", ArrayImages("x", pixels), {"train": np.arange(len(pixels))}, "0" * 16)


def test_pixel_statistics_are_those_of_training():
    pixels = noise(7, 8, 8, 3)
    found = survey.survey(dataset_of(pixels))
    shares = pixels.reshape(7, -1, 3) / 255
    moments = np.stack([shares.mean(1), np.square(shares).mean(1)], 1)
    mean, std = pixel_statistics(moments)
    np.testing.assert_allclose(found.pixel_mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.pixel_std, std, atol=1e-6)


def test_grey_is_grey_by_its_pixels():
    grey = noise(5, 8, 8, 1).repeat(3, axis=3)
    assert survey.survey(dataset_of(grey)).is_grey
    grey[4, 3, 3, 0] ^= 1
    found = survey.survey(dataset_of(grey))
    assert (found.is_grey, found.grey) == (False, 4)


def test_of_a_large_set_a_sample_is_looked_at_which_is_the_same_every_time():
    pixels = noise(50, 4, 4, 1)
    done = []
    found = survey.survey(dataset_of(pixels), done.append, most=20)
    assert (found.images, found.looked_at, done[-1]) == (50, 20, 20)
    assert found.splits == {"train": 50}
    assert found == survey.survey(dataset_of(pixels), most=20)
    assert "looked at 20 of the 50 images" in survey.lines(found)[0]


def test_a_set_of_nothing_readable_is_a_mistake_in_words(tmp_path):
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of 5 can be read .*0.png: not an image.*; \.\.\."):
        survey_of(tmp_path)


def test_a_survey_comes_back_as_it_was_kept_and_a_damaged_one_is_none(tmp_path):
    dataset = dataset_of(noise(5, 8, 8, 3))
    found = survey.survey(dataset)
    survey.save(found, tmp_path)
    assert survey.load(tmp_path, dataset.name, dataset.fingerprint) == found
    assert survey.load(tmp_path, dataset.name, "1" * 16) is None
    path = survey.path_of(tmp_path, dataset.fingerprint)
    for old, new in [('"copies"', '"copied"'), ("true", "1"), ('"8": 5', '"eight": 5')]:
        text = path.read_text().replace('"multi_label": false', '"multi_label": true')
        path.write_text(text.replace(old, new))
        assert survey.load(tmp_path, dataset.name, dataset.fingerprint) is None, old
        survey.save(found, tmp_path)


def test_other_decoders_look_again_at_what_could_not_be_read(tmp_path, monkeypatch):
    folder, kept = tmp_path / "images", tmp_path / "kept"
    save(folder, "a.png", noise(9, 9, 3))
    (folder / "b.png").write_bytes(b"x")
    dataset = open_dataset(f"folder:{folder}")
    found = survey.survey(dataset)
    assert "pillow" in found.decoders
    for unreadable in (1, 0):
        survey.save(dataclasses.replace(found, unreadable=unreadable), kept)
        assert survey.load(kept, dataset.name, dataset.fingerprint)
        with monkeypatch.context() as patch:
            patch.setattr(survey.metadata, "version", lambda name: "another")
            again = survey.load(kept, dataset.name, dataset.fingerprint)
        assert (again is None) == bool(unreadable)


def test_an_unlabelled_set_has_no_classes(tmp_path):
    save(tmp_path, "a.png", noise(9, 9, 3))
    found = survey_of(tmp_path)
    assert (found.classes, survey.facts(found)["labelled"]) == ({}, False)
    assert "without labels" in survey.lines(found)[1]
