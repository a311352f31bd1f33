"""Label-free measures against closed forms and slow versions of themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpt_jax.evaluate import label_free


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_rankme_of_equal_directions_is_their_number(rank: int) -> None:
    directions = np.linalg.qr(normal(0, 8, 8))[0][:rank]
    features = np.concatenate([np.linalg.qr(normal(1, 20, rank))[0] @ directions])
    assert label_free.rankme(features) == pytest.approx(rank, rel=1e-4)


def test_rankme_does_not_depend_on_scale_or_rotation() -> None:
    features = normal(0, 30, 6) * np.arange(1, 7)
    turned = 1000 * features @ np.linalg.qr(normal(1, 6, 6))[0]
    assert label_free.rankme(turned) == pytest.approx(label_free.rankme(features), rel=1e-6)


def test_rankme_of_nothing_is_a_number() -> None:
    assert math.isfinite(label_free.rankme(np.zeros((4, 3))))


def test_alignment_is_0_for_equal_views_and_4_for_opposite_ones() -> None:
    features = normal(0, 10, 4)
    assert label_free.alignment(features, 3 * features) == pytest.approx(0, abs=1e-12)
    assert label_free.alignment(features, -2 * features) == pytest.approx(4)


def test_uniformity_is_0_where_all_is_one_and_by_pairs_elsewhere() -> None:
    assert label_free.uniformity(np.ones((5, 3))) == pytest.approx(0)
    features = normal(0, 7, 3)
    unit = [row / math.sqrt(sum(row**2)) for row in features]
    pairs = [
        math.exp(-2 * sum((unit[i] - unit[j]) ** 2)) for i in range(7) for j in range(7) if i < j
    ]
    assert label_free.uniformity(features) == pytest.approx(math.log(np.mean(pairs)))


def test_even_features_on_the_sphere_reach_the_known_uniformity() -> None:
    # E exp(-2 |x - y|^2) = exp(-4) E exp(4 <x, y>), which on the sphere in 3 dimensions is
    # exp(-4) sinh(4) / 4.
    found = label_free.uniformity(normal(0, 3000, 3))
    assert found == pytest.approx(math.log(math.exp(-4) * math.sinh(4) / 4), abs=0.01)


def test_retrieval_is_by_the_place_at_which_the_own_image_comes() -> None:
    first = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    # Found 1st, 1st, 3rd (equally far as another) and 1st.
    second = np.array([[3.0, 1], [0.1, 2], [0, 1], [0.2, -5]])
    by_chance = np.mean(np.log([1, 2, 3, 4]))
    expected = 1 - (math.log(3) / 4) / by_chance
    assert label_free.retrieval(first, second) == pytest.approx(expected)
    assert label_free.retrieval(first, first) == 1


def test_retrieval_is_0_by_chance_and_negative_where_others_are_always_nearer() -> None:
    assert label_free.retrieval(normal(0, 2000, 8), normal(1, 2000, 8)) == pytest.approx(
        0, abs=0.01
    )
    assert label_free.retrieval(np.ones((4, 2)), np.ones((4, 2))) < -0.5  # ties count as nearer


def test_one_image_and_zeros_are_no_fault() -> None:
    one, zeros = np.ones((1, 3)), np.zeros((3, 2))
    assert label_free.uniformity(one) == 0
    assert label_free.retrieval(one, one) == 1
    assert label_free.alignment(zeros, zeros) == 0
    assert label_free.retrieval(zeros, zeros) < 0
