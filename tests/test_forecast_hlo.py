"""The traffic of a compiled program, against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from hpt_jax.forecast import hlo

# A program as the TPU's compiler writes it: S(1) is on-chip memory, T(8,128) pads the two last
# sides to multiples of 8 and 128.
PROGRAM = """\
HloModule toy, is_scheduled=true

%fused (one: bf16[8,100]) -> bf16[8,100] {
  %one = bf16[8,100]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %twice = bf16[8,100]{1,0:T(8,128)(2,1)} add(%one, %one)
}

%hidden (part: f32[32,128]) -> f32[128,128] {
  %part = f32[32,128]{1,0:T(8,128)} parameter(0)
  ROOT %gathered.1 = f32[128,128]{1,0:T(8,128)} all-gather(%part), dimensions={0}, \
frontend_attributes={chain_id="7"}
}

%hidden.again (part: f32[32,128]) -> f32[128,128] {
  %part.2 = f32[32,128]{1,0:T(8,128)} parameter(0)
  ROOT %gathered.2 = f32[128,128]{1,0:T(8,128)} all-gather(%part.2), dimensions={0}, \
frontend_attributes={chain_id="7"}
}

%body (carried: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %carried = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %count = s32[]{:T(128)S(6)} get-tuple-element(%carried), index=0
  %state = f32[16,128]{1,0:T(8,128)} get-tuple-element(%carried), index=1
  %next = f32[16,128]{1,0:T(8,128)} negate(%state)
  ROOT %both = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) tuple(%count, %next)
}

%condition (carried.2: (s32[], f32[16,128])) -> pred[] {
  %carried.2 = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %count.2 = s32[]{:T(128)S(6)} get-tuple-element(%carried.2), index=0
  %three = s32[]{:T(128)} constant(3), metadata={op_name="limit"}
  ROOT %less = pred[]{:T(512)S(6)} compare(%count.2, %three), direction=LT
}

ENTRY %main (a: bf16[8,100], b: f32[32,128], c: f32[16,128]) -> f32[16,128] {
"""
HEAD = """\
  %a = bf16[8,100]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[32,128]{1,0:T(8,128)} parameter(1)
  %c = f32[16,128]{1,0:T(8,128)} parameter(2)
"""
A, B, C = 8 * 128 * 2, 32 * 128 * 4, 16 * 128 * 4  # bytes, padded


def counted(*lines):
    return hlo.traffic_of(PROGRAM + HEAD + "".join(f"  {line}\n" for line in lines) + "}\n")


COPY = (
    "%begun = (bf16[8,100]{1,0:T(8,128)(2,1)S(1)}, bf16[8,100]{1,0:T(8,128)(2,1)}, "
    "u32[]{:S(2)}) copy-start(%a)",
    "%near = bf16[8,100]{1,0:T(8,128)(2,1)S(1)} copy-done(%begun)",
)


def test_operands_and_results_count_with_the_padding_of_their_tiles():
    assert counted("%x = bf16[8,100]{1,0:T(8,128)(2,1)} negate(%a)").hbm_bytes == 2 * A
    # 100 is now the side before the last: padded to 104; and 8 becomes 128.
    turned = "%x = bf16[8,100]{0,1:T(8,128)(2,1)} copy(%a)"
    assert counted(turned).hbm_bytes == A + 104 * 128 * 2
    assert counted("%x = pred[5]{0:T(512)} custom(%c)").hbm_bytes == C + 512


def test_on_chip_memory_costs_nothing_and_a_copy_to_it_once():
    assert counted(*COPY).hbm_bytes == A
    fusion = "%x = bf16[8,100]{1,0:T(8,128)(2,1)} fusion(%near), kind=kLoop, calls=%fused"
    assert counted(*COPY, fusion).hbm_bytes == A + A


def test_a_slice_counts_what_is_cut_out():
    begun = (
        "%cut = ((f32[32,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) "
        "slice-start(%b), slice={[0:8], [0:128]}"
    )
    done = "%got = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%cut)"
    seen = (
        '%all = f32[8,128]{1,0:T(8,128)S(1)} custom-call(%got), custom_call_target="ConcatBitcast"'
    )
    assert counted(begun, done, seen).hbm_bytes == 8 * 128 * 4


def test_a_copy_within_hbm_counts_twice():
    far = COPY[0].replace("(2,1)S(1)}", "(2,1)}")
    assert counted(far).hbm_bytes == 2 * A


def test_names_for_what_is_there_cost_nothing():
    lines = (
        "%x = bf16[800]{0:T(1024)} bitcast(%a)",
        "%two = (bf16[800]{0:T(1024)}, f32[16,128]{1,0:T(8,128)}) tuple(%x, /*index=1*/%c)",
        "%y = f32[16,128]{1,0:T(8,128)} get-tuple-element(%two), index=1",
    )
    assert counted(*lines) == hlo.Traffic()


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    start = "%zero = s32[]{:T(128)S(6)} constant(0)"
    pair = "%pair = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) tuple(%zero, %c)"
    loop = (
        "%loop = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) while(%pair), "
        "condition=%condition, body=%body"
    )
    assert counted(start, pair, loop).hbm_bytes == 3 * (2 * C)
    told = loop + ', backend_config={"known_trip_count":{"n":"5"}}'
    assert counted(start, pair, told).hbm_bytes == 5 * (2 * C)


def test_a_loop_whose_length_cannot_be_read_is_no_number():
    odd = PROGRAM.replace("direction=LT", "direction=NE")
    loop = "%loop = f32[16,128]{1,0:T(8,128)} while(%c), condition=%condition, body=%body\n}\n"
    with pytest.raises(ValueError, match="loop"):
        hlo.traffic_of(odd + HEAD + "  " + loop)


def test_collectives_count_what_they_carry_without_padding():
    reduce = "%sum = bf16[8,100]{1,0:T(8,128)(2,1)} all-reduce(%a), to_apply=%add"
    gather = (
        "%begun = (f32[32,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}) "
        "all-gather-start(%b), dimensions={0}",
        "%all = f32[128,128]{1,0:T(8,128)} all-gather-done(%begun)",
    )
    found = counted(reduce, *gather)
    assert (found.reduced_bytes, found.gathered_bytes) == (8 * 100 * 2, 4 * B)
    assert found.hbm_bytes == 2 * A + B + 4 * B


def test_a_gather_of_several_arrays_counts_each_once():
    begun = (
        "%begun = ((f32[32,128]{1,0}, s32[32]{0}), (f32[128,128]{1,0}, s32[128]{0})) "
        "all-gather-start(%b, %c), dimensions={0}"
    )
    assert counted(begun).gathered_bytes == 128 * 128 * 4 + 128 * 4


def test_a_collective_hidden_behind_computations_counts_once():
    lines = (
        "%p = f32[128,128]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%hidden",
        "%q = f32[128,128]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%hidden.again",
    )
    assert counted(*lines).gathered_bytes == 4 * B


def test_a_program_of_this_machines_compiler_is_read_as_well():
    def looped(x):
        return lax.scan(lambda carry, _: (jnp.sort(carry), None), x, None, 6)[0]

    text = jax.jit(looped).lower(jnp.zeros(1000)).compile().as_text()
    # Six sorts of 4000 bytes, read and written; what surrounds them is left to the compiler.
    assert 6 * 8000 <= hlo.traffic_of(text).hbm_bytes <= 3 * 6 * 8000


def moves(*lines):
    return hlo.moves_of(PROGRAM + HEAD + "".join(f"  {line}\n" for line in lines) + "}\n")


def test_each_move_says_where_in_the_traced_program_it_is_from():
    named = 'metadata={op_name="jit(step)/keys/add"}'
    loop = (
        "%loop = f32[16,128]{1,0:T(8,128)} while(%c), condition=%condition, body=%body",
        f"%x = bf16[8,100]{{1,0:T(8,128)(2,1)}} negate(%a), {named}",
    )
    body, own = moves(*loop)
    assert (body.name, body.op_name, body.traffic.hbm_bytes) == ("next", "", 3 * 2 * C)
    assert (own.name, own.op_name, own.traffic.hbm_bytes) == ("x", "jit(step)/keys/add", 2 * A)


def test_a_copy_to_the_chip_is_from_what_uses_it_and_one_from_the_chip_is_told_apart():
    used = (
        "%seen = bf16[8,100]{1,0:T(8,128)(2,1)S(1)} bitcast(%near)",
        '%y = bf16[8,100]{1,0:T(8,128)(2,1)S(1)} negate(%seen), metadata={op_name="queries/neg"}',
        "%left = (bf16[8,100]{1,0:T(8,128)(2,1)}, bf16[8,100]{1,0:T(8,128)(2,1)S(1)}, "
        "u32[]{:S(2)}) copy-start(%y)",
    )
    fetched, negated, evicted = moves(*COPY, *used)
    assert (fetched.op_name, fetched.evicts, fetched.traffic.hbm_bytes) == ("queries/neg", False, A)
    assert negated.traffic == hlo.Traffic()
    assert (evicted.name, evicted.evicts, evicted.traffic.hbm_bytes) == ("left", True, A)


def test_collectives_tell_the_sides_of_what_they_carry():
    fused = "%p = f32[128,128]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%hidden"
    own = "%sum = bf16[8,100]{1,0:T(8,128)(2,1)} all-reduce(%a), to_apply=%add"
    sent = [move.sent for move in moves(fused, own) if move.sent]
    assert sent == [(((128, 128), 4 * B),), (((8, 100), 8 * 100 * 2),)]
