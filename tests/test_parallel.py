"""Devices: what is cut comes back whole, both mappings agree, groups lie where they should."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import lax

from hpt_jax.errors import UserError
from hpt_jax.parallel import AXIS, make_devices

MAPPINGS = ("shard_map", "pmap")


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("count", [1, 2, 8])
def test_gather_is_the_inverse_of_shard(mapping, count):
    devices = make_devices(count, mapping)
    batch = {
        "images": np.arange(16 * 3 * 2, dtype=np.uint8).reshape(16, 3, 2),
        "labels": np.arange(16, dtype=np.int32),
    }
    back = devices.gather(devices.shard(batch))
    assert {name: value.dtype for name, value in back.items()} == {
        "images": np.uint8,
        "labels": np.int32,
    }
    jax.tree.map(np.testing.assert_array_equal, back, batch)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_each_device_is_given_consecutive_rows(mapping):
    devices = make_devices(4, mapping)
    program = devices.map(
        lambda rows: rows + 100 * lax.axis_index(AXIS), (True,), sharded_out=True, donate=False
    )
    rows = np.arange(12)
    np.testing.assert_array_equal(
        devices.gather(program(devices.shard(rows))), rows + 100 * (rows // 3)
    )


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_gradients_inside_are_of_a_devices_own_rows_until_one_mean_joins_them(mapping):
    devices = make_devices(4, mapping)
    weights, rows = np.array([1.0, -2.0], np.float32), np.arange(16, dtype=np.float32)

    def program(weights, rows):
        own = jax.grad(lambda w: ((w[0] * rows + w[1]) ** 2).mean())(weights)
        return lax.pmean(own, AXIS), lax.all_gather(own, AXIS)

    mapped = devices.map(program, (False, True), sharded_out=False, donate=False)
    joined, own = mapped(weights, devices.shard(rows))
    residual = weights[0] * rows + weights[1]
    each = np.stack([2 * residual * rows, 2 * residual], 1)
    np.testing.assert_allclose(own, each.reshape(4, 4, 2).mean(1), rtol=1e-6)
    np.testing.assert_allclose(joined, each.mean(0), rtol=1e-6)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_donated_state_is_given_up_and_the_batch_is_not(mapping):
    devices = make_devices(2, mapping)
    for donate in (True, False):
        state = devices.replicate(np.ones(4, np.float32))
        batch = devices.shard(np.ones((4, 4), np.float32))
        program = devices.map(
            lambda state, rows: state + lax.pmean(rows.sum(0), AXIS),
            (False, True),
            sharded_out=False,
            donate=donate,
        )
        np.testing.assert_array_equal(program(state, batch), np.full(4, 3, np.float32))
        assert (state.is_deleted(), batch.is_deleted()) == (donate, False)


def test_replicated_values_are_whole_on_every_device():
    value = make_devices(4).replicate({"w": np.arange(6)})["w"]
    assert len({shard.device for shard in value.addressable_shards}) == 4
    for shard in value.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(6))


def groups_of_slots(layout, count, batch):
    """For each slot of the batch, the slots that the layout has it share a group with."""
    rows = batch // count
    members = []
    for slot in range(batch):
        device, row = divmod(slot, rows)
        if layout.axis_name is None:
            size = rows // layout.groups
            first = device * rows + row // size * size
            members.append(set(range(first, first + size)))
        else:
            assert (layout.groups, layout.axis_name) == (1, AXIS)
            sharing = layout.axis_index_groups or (tuple(range(count)),)
            (mine,) = [devices for devices in sharing if device in devices]
            members.append({d * rows + r for d in mine for r in range(rows)})
    return members


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_groups_are_consecutive_slots_whatever_the_devices(count, groups):
    layout = make_devices(count).group_layout(groups)
    size = 32 // groups
    expected = [set(range(s // size * size, s // size * size + size)) for s in range(32)]
    assert groups_of_slots(layout, count, 32) == expected
    # Collectives are for the groups that need them.
    assert (layout.axis_name is None) == (groups >= count)


@pytest.mark.parametrize(("count", "groups"), [(2, 3), (4, 3), (4, 6), (8, 3), (8, 12)])
def test_groups_that_no_layout_fits_are_a_mistake_in_bn_groups(count, groups):
    with pytest.raises(UserError) as caught:
        make_devices(count).group_layout(groups)
    (mistake,) = caught.value.mistakes
    assert (mistake.field, mistake.value) == ("model.bn_groups", groups)
    assert str(count) in mistake.expected


def test_zero_devices_are_all_of_them():
    assert make_devices().count == len(jax.devices()) == 8
    assert [make_devices(n).count for n in (1, 3, 8)] == [1, 3, 8]


def test_more_devices_than_there_are_is_a_mistake():
    with pytest.raises(UserError) as caught:
        make_devices(9)
    (mistake,) = caught.value.mistakes
    assert (mistake.field, mistake.value) == ("parallel.devices", 9)
    assert "8" in mistake.expected


def test_xla_knows_the_flag_for_deterministic_kernels():
    code = (
        "import os; from hpt_jax.parallel import make_devices;"
        "make_devices(1, deterministic=True).replicate(1.0);"
        "assert '--xla_gpu_deterministic_ops=true' in os.environ['XLA_FLAGS']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # XLA aborts at an unknown flag
