"""Promises of crop boxes, antialiased resizing and the flip."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from hpt_jax.augment import geometric

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
# Height and width of the stored pixels; images are padded to it.
STORED = (40, 48)


@functools.partial(jax.jit, static_argnums=(2, 3))
def resized(images, boxes, size, dtype=jnp.float32):
    crop = functools.partial(geometric.crop_and_resize, size=size, dtype=dtype)
    return jax.vmap(crop)(images, boxes)


def repeated(size, count):
    return np.tile(np.int32(size), (count, 1))


def pillow_resize(image, box, size):
    """u8[h, w, C] cut to (top, left, height, width) and resized by Pillow, flattened."""
    top, left, height, width = box
    corners = (left, top, left + width, top + height)
    channels = [
        Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR, box=corners)
        for channel in np.ascontiguousarray(np.moveaxis(image, -1, 0))
    ]
    return np.stack([np.asarray(channel, int) for channel in channels], axis=-1).ravel()


def random_boxes(rng, sizes):
    sides = [rng.integers(1, np.array(size) + 1) for size in sizes]
    corners = [
        rng.integers(0, np.array(size) - side + 1) for size, side in zip(sizes, sides, strict=True)
    ]
    return np.concatenate([corners, sides], axis=1)


def assert_within_one_grey_level(ours, pillows):
    differences = np.concatenate([a.ravel() - b for a, b in zip(ours, pillows, strict=True)])
    assert np.abs(differences).max() <= 1
    # Pillow's rounding between its passes moves a value by a level either way, equally often.
    assert abs(differences.mean()) < 0.03


@pytest.mark.parametrize(("size", "channels"), [(12, 1), (12, 3), (12, 5), (56, 3)])
def test_crop_and_resize_equals_pillows_within_one_grey_level(size, channels):
    rng = np.random.default_rng(size + channels)
    sizes = ([STORED, (6, 18), (1, 1), (33, 17), (2, 40), (40, 1)] * 10)[:48]
    # Padding is noise too, so that a pixel of it that leaks in is seen.
    images = rng.integers(0, 256, (len(sizes), *STORED, channels), dtype=np.uint8)
    boxes = random_boxes(rng, sizes)
    boxes[:6] = [(0, 0, *size) for size in sizes[:6]]
    ours = np.asarray(resized(images, np.float32(boxes), size, jnp.float32))
    assert ours.shape == (len(sizes), size, size, channels)
    assert ours.dtype == np.uint8
    pillows = []
    for image, (top, left, height, width) in zip(images, boxes, strict=True):
        cut = image[top : top + height, left : left + width]
        pillows.append(pillow_resize(cut, (0, 0, height, width), size))
    assert_within_one_grey_level(ours, pillows)


def test_a_fractional_center_crop_equals_pillows_resize_of_that_box():
    rng = np.random.default_rng(3)
    sizes = np.array([(40, 48), (33, 17), (10, 10), (6, 18), (1, 1), (39, 40), (23, 48), (40, 37)])
    images = rng.integers(0, 256, (len(sizes), *STORED, 3), dtype=np.uint8)
    boxes = geometric.center_crop_boxes(sizes, fraction=7 / 8)
    assert (boxes != np.round(boxes)).any()
    ours = np.asarray(resized(images, boxes, 12, jnp.float32))
    pillows = []
    for image, box in zip(images, boxes.astype(float), strict=True):
        # The smallest whole box around it: what lies beyond has no influence.
        start, end = np.floor(box[:2]).astype(int), np.ceil(box[:2] + box[2:]).astype(int)
        outer = image[start[0] : end[0], start[1] : end[1]]
        inner = (*(box[:2] - start), *box[2:])
        pillows.append(pillow_resize(outer, inner, 12))
    assert_within_one_grey_level(ours, pillows)


@pytest.mark.parametrize(
    ("height", "width", "fraction", "expected"),
    [
        (256, 256, 7 / 8, (16, 16, 224, 224)),
        (100, 60, 1.0, (20, 0, 60, 60)),
        (7, 10, 0.5, (1.75, 3.25, 3.5, 3.5)),
    ],
)
def test_a_center_crop_is_a_central_fraction_of_the_shorter_side(height, width, fraction, expected):
    [box] = geometric.center_crop_boxes(np.array([[height, width]]), fraction)
    np.testing.assert_allclose(box, expected, rtol=1e-6)


def test_a_center_crop_that_is_whole_but_for_rounding_sees_no_pixel_beyond_it():
    whole = np.float32([5, 5, 15, 15])
    fractional = np.float32([5, 5, 15.000001, 15.000001])
    assert (fractional != whole).any()
    image = np.full((1, *STORED, 3), 255, np.uint8)
    image[:, 5:20, 5:20] = np.random.default_rng(4).integers(0, 100, (15, 15, 3))
    ours = resized(image, fractional[None], 12, jnp.float32).astype(int)
    exact = resized(image, whole[None], 12, jnp.float32).astype(int)
    assert np.abs(ours - exact).max() <= 1


def exact_weights(length, size):
    """The triangle filter's weights [size, length], as fractions."""
    step = Fraction(length, size)
    rows = []
    for output in range(size):
        center = (output + Fraction(1, 2)) * step
        row = [
            max(1 - abs(pixel + Fraction(1, 2) - center) / max(step, 1), Fraction(0))
            for pixel in range(length)
        ]
        rows.append([weight / sum(row) for weight in row])
    return np.array(rows, dtype=object)


def test_exact_ties_round_up_in_either_precision_and_in_any_batch():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (24, 24, 32, 1), dtype=np.uint8)
    sides = [(12, 12), (24, 12), (3, 12), (10, 10), (6, 3), (24, 8)] * 4
    offsets = [rng.integers(0, (25 - h, 33 - w)) for h, w in sides]
    boxes = np.concatenate([offsets, sides], axis=1).astype(np.float32)

    ties, expected = 0, []
    for image, (top, left, height, width) in zip(images, boxes.astype(int), strict=True):
        cut = image[top : top + height, left : left + width, 0].astype(object)
        exact = exact_weights(height, 6) @ cut @ exact_weights(width, 6).T
        ties += sum(value % 1 == Fraction(1, 2) for value in exact.ravel())
        expected.append([[math.floor(value + Fraction(1, 2)) for value in row] for row in exact])
    expected = np.array(expected)[..., None]
    assert ties > 10

    np.testing.assert_array_equal(resized(images, boxes, 6, jnp.float32), expected)
    for count in (1, 5):
        some = resized(images[:count], boxes[:count], 6, jnp.float32)
        np.testing.assert_array_equal(some, expected[:count])
    with jax.enable_x64(True):
        np.testing.assert_array_equal(resized(images, boxes, 6, jnp.float64), expected)


def test_ties_far_from_the_corner_are_the_same_in_either_precision():
    # A float32 position near 1600 is off by up to 6e-5 of a pixel, which must not reach the ties.
    rng = np.random.default_rng(6)
    images = rng.integers(0, 256, (60, 3, 1600, 1), dtype=np.uint8)
    lengths = rng.integers(3, 24, 60)
    boxes = np.stack([0 * lengths, 1599 - lengths, 0 * lengths + 3, lengths], axis=1)
    single = np.asarray(resized(images, np.float32(boxes), 24, jnp.float32))
    with jax.enable_x64(True):
        double = np.asarray(resized(images, np.float32(boxes), 24, jnp.float64))
    np.testing.assert_array_equal(single, double)


def test_flip_mirrors_left_to_right_where_asked():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    both = jax.vmap(geometric.flip, (None, 0))(image, jnp.array([True, False]))
    np.testing.assert_array_equal(both, [np.fliplr(image), image])


def torchvision_box(rng, height, width, scale, ratio):
    """`RandomResizedCrop.get_params`, retold: top, left, height, width."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(64, 64), (97, 41), (20, 61)])
def test_boxes_are_distributed_as_torchvisions(size):
    count = 10000
    rng = np.random.default_rng(sum(size))
    draws = rng.random((count, geometric.BOX_DRAWS), np.float32)
    ours = np.asarray(
        geometric.random_resized_crop_boxes(draws, repeated(size, count), SCALE, RATIO), float
    )
    theirs = np.array([torchvision_box(rng, *size, SCALE, RATIO) for _ in range(count)], float)
    slack = [np.array(size) - boxes[:, 2:] for boxes in (ours, theirs)]
    for what, our, their in [
        ("area", ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        ("ratio", ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
        ("top", ours[:, 0], theirs[:, 0]),
        ("left", ours[:, 1], theirs[:, 1]),
        ("bottom", slack[0][:, 0] - ours[:, 0], slack[1][:, 0] - theirs[:, 0]),
        ("right", slack[0][:, 1] - ours[:, 1], slack[1][:, 1] - theirs[:, 1]),
        ("both corners", ours[:, 0] + ours[:, 1], theirs[:, 0] + theirs[:, 1]),
        ("ratio of big boxes", *(b[b[:, 2] > b[:, 3], 3] for b in (ours, theirs))),
    ]:
        assert stats.ks_2samp(our, their).pvalue > 1e-3, what


def test_corners_are_uniform_over_every_place_that_fits():
    # Half the area at ratio 1 is a box of 4 x 4 in an image of 6 x 6: nine places.
    count = 9000
    draws = np.random.default_rng(9).random((count, geometric.BOX_DRAWS), np.float32)
    boxes = geometric.random_resized_crop_boxes(
        draws, repeated((6, 6), count), (16 / 36, 16 / 36), (1.0, 1.0)
    )
    boxes = np.asarray(boxes, int)
    assert (boxes[:, 2:] == 4).all()
    counts = np.zeros((3, 3))
    np.add.at(counts, (boxes[:, 0], boxes[:, 1]), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_where_no_box_fits_the_fall_back_is_torchvisions():
    sizes = [(4, 200), (200, 4), (10, 10), (10, 12), (12, 10), (3, 5), (5, 3), (1, 9), (1, 1)]
    draws = np.random.default_rng(0).random((len(sizes), geometric.BOX_DRAWS), np.float32)
    # No box has five times the image's area.
    boxes = geometric.random_resized_crop_boxes(draws, np.int32(sizes), (5.0, 6.0), RATIO)
    rng = np.random.default_rng(0)
    theirs = [torchvision_box(rng, *size, (5.0, 6.0), RATIO) for size in sizes]
    np.testing.assert_array_equal(boxes, theirs)


def test_the_first_attempt_that_fits_is_taken():
    # Areas of 3, 2 and 0.25 times the image's: the third is the first that fits.
    draws = np.full((1, geometric.BOX_DRAWS), 0.5, np.float32)
    wanted = np.array([3, 2, 0.25, 0.5, 1, 1, 1, 1, 1, 1], np.float32)
    draws[0, :10] = wanted / 4
    boxes = geometric.random_resized_crop_boxes(
        draws, np.int32([(16, 16)]), (0.0, 4.0), (0.25, 4.0)
    )
    np.testing.assert_array_equal(boxes, [(4, 4, 8, 8)])


def test_a_box_is_whole_and_inside_the_image_for_the_most_extreme_draws():
    rng = np.random.default_rng(1)
    sides = [(1, 1), (6, 18), (18, 6), (1, 300), (300, 1), (2, 3), (97, 41), (4001, 3999)]
    extremes = rng.choice(np.float32([0, BELOW_ONE]), (400, geometric.BOX_DRAWS))
    extremes[0], extremes[1] = 0, BELOW_ONE
    draws = np.concatenate([extremes, rng.random((400, geometric.BOX_DRAWS), np.float32)])
    draws, sizes = np.repeat(draws, len(sides), axis=0), np.tile(np.int32(sides), (800, 1))
    boxes = np.asarray(geometric.random_resized_crop_boxes(draws, sizes, SCALE, RATIO))
    assert (boxes == np.round(boxes)).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
