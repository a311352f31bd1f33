"""Promises of the order in which steps read images."""

import collections

import numpy as np
import pytest
from scipy import stats

from hpt_jax.data import order


@pytest.mark.parametrize(
    ("n", "batch"), [(1, 1), (1, 5), (3, 8), (7, 7), (10, 4), (64, 16), (5, 1)]
)
def test_every_image_is_seen_once_in_each_epoch(n, batch):
    epochs = 6
    steps = -(-n * epochs // batch)
    stream = np.concatenate([order.batch_indices(3, step, batch, n) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize(("n", "batch"), [(1, 3), (3, 8), (10, 4), (16, 16)])
def test_each_slot_holds_the_image_that_the_definition_names(n, batch):
    for step in (0, 1, 7, 1000):
        expected = [
            order.epoch_permutation(11, p // n, n)[p % n]
            for p in range(step * batch, (step + 1) * batch)
        ]
        batch_of_step = order.batch_indices(11, step, batch, n)
        assert batch_of_step.dtype == np.int64
        np.testing.assert_array_equal(batch_of_step, expected)


def test_the_stream_of_images_does_not_depend_on_the_batch_size():
    small = np.concatenate([order.batch_indices(5, step, 4, 11) for step in range(15)])
    large = np.concatenate([order.batch_indices(5, step, 12, 11) for step in range(5)])
    np.testing.assert_array_equal(small, large)


def test_the_order_is_the_same_on_every_machine_and_numpy():
    # Philox4x64-10 written out from its paper (Salmon et al. 2011): no numpy generator involved.
    mask = 2**64 - 1

    def block(counter, key):
        c, (k0, k1) = list(counter), key
        for _ in range(10):
            high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
            high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
            c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        return c

    n = 23
    words = [word for counter in range(1, 7) for word in block((counter, 0, 0, 0), (42, 3))][:n]
    expected = sorted(range(n), key=words.__getitem__)
    assert order.epoch_permutation(42, 3, n).tolist() == expected


def test_seeds_and_epochs_give_different_orders():
    orders = {
        tuple(order.epoch_permutation(seed, epoch, 20)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_permutations_of_three_are_equally_likely():
    counts = collections.Counter(tuple(order.permutation((9, key), 3)) for key in range(6000))
    assert len(counts) == 6
    # Six cells of 1000 with a standard deviation of 29: five of them is never left by chance.
    assert max(abs(count - 1000) for count in counts.values()) < 145


def test_a_callers_change_cannot_reach_the_next_epoch_permutation():
    with pytest.raises(ValueError, match="read-only"):
        order.epoch_permutation(0, 0, 5)[0] = 1


def test_a_batch_of_no_images_is_refused():
    with pytest.raises(ValueError, match="n=0"):
        order.batch_indices(0, 0, 4, 0)


def test_uniforms_repeat_and_differ_by_seed_step_and_stream():
    made = [
        order.uniforms(seed, step, stream, (50,))
        for seed in (0, 1)
        for step in (0, 1)
        for stream in (1, 2)
    ]
    np.testing.assert_array_equal(made[0], order.uniforms(0, 0, 1, (50,)))
    assert np.unique(made).size == 8 * 50


def test_uniforms_are_uniform_and_a_larger_batch_keeps_those_of_a_smaller():
    many = order.uniforms(3, 7, 1, (2000, 5))
    assert stats.kstest(many.ravel(), "uniform").pvalue > 1e-3
    assert many.min() >= 0
    assert many.max() < 1
    np.testing.assert_array_equal(many[:10], order.uniforms(3, 7, 1, (10, 5)))


def test_uniforms_and_epochs_share_no_random_word():
    drawn = order._raw(3, 1, 1, (1000,))
    epoch = np.random.Philox(key=np.array([3, 1], np.uint64)).random_raw(1000)
    assert not np.intersect1d(drawn, epoch).size


def test_every_shuffle_of_a_block_is_equally_likely():
    made = [tuple(order.shuffle(0, step, 3, 3, 3)) for step in range(6000)]
    _, counts = np.unique(made, axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3
