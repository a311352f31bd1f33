"""The traffic of a program compiled for a TPU or a GPU, counted in its scheduled text.

The TPU compiler's own "bytes accessed" is no measure of it: it counts the on-chip memory like HBM,
asynchronous copies several times, and the body of a loop once. Here each scheduled instruction
moves its operands and results as far as they lie in HBM, at their padded size; a copy between HBM
and on-chip memory moves its size once; the body of a loop counts as often as it runs. Every operand
is taken to be read once, which is a lower estimate; but a GPU's caches, which may keep what is read
soon after it was written, are taken to be of no help.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping

_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) .*\{$")
# An array's type: dtype[sizes]{minor to major:T(tile)...S(space)}; the layout may be missing.
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_BITS = re.compile(r"\D+(\d+)")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHAIN = re.compile(r'chain_id="(\w+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')

# They move nothing: names for parts of what is there, and ends of what was counted at its start.
_STILL = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
    "partition-id", "replica-id", "copy-done", "slice-done", "async-done", "async-update",
    "all-reduce-done", "all-gather-done", "collective-permute-done", "opt-barrier",
}  # fmt: skip
# Custom calls that move nothing: several arrays that lie side by side, seen as one.
_STILL_CALLS = ("ConcatBitcast", "AsyncCollectiveDone")
_REDUCED = ("all-reduce", "reduce-scatter")
_GATHERED = ("all-gather", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one run of a program moves on one device, in bytes.

    Attributes:
      hbm_bytes: to and from HBM.
      reduced_bytes: arrays that are summed over devices, as they go in.
      gathered_bytes: arrays that are made of all devices' parts, as they come out.
    """

    hbm_bytes: float = 0.0
    reduced_bytes: float = 0.0
    gathered_bytes: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.hbm_bytes + other.hbm_bytes,
            self.reduced_bytes + other.reduced_bytes,
            self.gathered_bytes + other.gathered_bytes,
        )

    def times(self, count: int) -> Traffic:
        """Of `count` runs."""
        return Traffic(*(count * value for value in dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class Move:
    """What one scheduled instruction moves in one run of a program, loops counted.

    Attributes:
      name: of the instruction.
      op_name: where in the traced program it is from: named scopes, then the operation; for a copy
        to on-chip memory, of what first uses it.
      evicts: whether it is a copy from on-chip memory to HBM.
      traffic: all of its runs together.
      sent: sides and bytes of each array of a collective, of one run.
    """

    name: str
    op_name: str
    evicts: bool
    traffic: Traffic
    sent: tuple[tuple[tuple[int, ...], int], ...] = ()


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array in memory: sides, bytes, bytes with the padding of its tiles, space (0: HBM)."""

    sides: tuple[int, ...]
    bytes: int
    padded: int
    space: int

    @property
    def moved(self) -> int:
        """Bytes to or from HBM, where it lies there."""
        return 0 if self.space else self.padded


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    results: tuple[_Array, ...]
    inside: str  # of its parentheses: operands, or the value of a constant
    rest: str  # attributes

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        return _NAME.findall(self.inside)

    def called(self, role: str) -> str:
        """The computation that it calls in a role, such as 'body'."""
        found = re.search(rf"\b{role}=%([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where in the traced program it is from."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""

    @property
    def kind(self) -> str:
        """Its opcode, whether it is split in start and end or not."""
        return self.opcode.removesuffix("-start")


def traffic_of(text: str) -> Traffic:
    """Counts a program's traffic.

    Args:
      text: of a compiled, scheduled program, as `compiled.as_text()` gives it.

    Raises:
      ValueError: it has a loop whose length cannot be read.
    """
    return _total(moves_of(text))


def moves_of(text: str) -> list[Move]:
    """The instructions that move anything; of alternatives, those that move most; as above."""
    computations, entry = _parsed(text)
    return list(_of_computation(entry, computations))


def _total(moves: Iterable[Move]) -> Traffic:
    return sum((move.traffic for move in moves), Traffic())


def _parsed(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            computations[current].append(_instruction(found[2], found[3]))
    return computations, entry


def _instruction(name: str, text: str) -> _Instruction:
    shape, text = _cut(text) if text.startswith("(") else text.split(" ", 1)
    opcode, text = text.strip().split("(", 1)
    inside, rest = _cut(f"({text}")
    return _Instruction(name, opcode, _arrays(shape), inside[1:-1], rest)


def _cut(text: str) -> tuple[str, str]:
    """Cuts text that begins with a parenthesis after the one that closes it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"an open parenthesis: {text[:80]}")


def _arrays(shape: str) -> tuple[_Array, ...]:
    return tuple(_array(*found.groups()) for found in _ARRAY.finditer(shape))


def _array(dtype: str, sizes: str, order: str | None, layout: str | None) -> _Array:
    bits = _BITS.match(dtype)
    width = int(bits[1]) / 8 if bits else 1.0  # pred
    dims = [int(size) for size in sizes.split(",") if size]
    major = [dims[int(place)] for place in reversed((order or "").split(",")) if place] or dims
    tile = _TILE.search(layout or "")
    space = _SPACE.search(layout or "")
    tiles = [int(side) for side in tile[1].split(",")] if tile else []
    padded = [1] * (len(tiles) - len(major)) + major
    first = len(padded) - len(tiles)
    padded[first:] = [-(-n // t) * t for n, t in zip(padded[first:], tiles, strict=True)]
    full, own = (math.ceil(math.prod(sides) * width) for sides in (padded, dims))
    return _Array(tuple(dims), own, full, int(space[1]) if space else 0)


def _of_computation(name: str, computations: Mapping[str, list[_Instruction]]) -> Iterator[Move]:
    known = {one.name: one for one in computations[name]}
    users = _users(computations[name])
    chains = set()
    for one in computations[name]:
        yield from _of_instruction(one, known, users, computations)
        for inner, chain in _fused_collectives(one, computations):
            # One that is hidden behind several computations is written once in each of them.
            if chain not in chains:
                chains.add(chain)
                yield Move(inner.name, inner.op_name, False, *_sent(inner))


def _users(instructions: Iterable[_Instruction]) -> dict[str, _Instruction]:
    """For each name the first instruction that uses it, through ends of copies and other names."""
    users: dict[str, _Instruction] = {}
    for one in reversed(list(instructions)):
        own = users.get(one.name, one) if one.opcode in _STILL or _is_still_call(one) else one
        users |= dict.fromkeys(one.operands, own)
    return users


def _of_instruction(
    one: _Instruction,
    known: Mapping[str, _Instruction],
    users: Mapping[str, _Instruction],
    computations: Mapping[str, list[_Instruction]],
) -> Iterable[Move]:
    if one.opcode in _STILL or _is_still_call(one):
        return ()
    if one.opcode == "while":
        body = _of_computation(one.called("body"), computations)
        trips = _trips(one, computations)
        return (dataclasses.replace(each, traffic=each.traffic.times(trips)) for each in body)
    if one.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
        names = _NAME.findall(branches[1]) if branches else []
        return max(
            (list(_of_computation(name, computations)) for name in names),
            key=lambda moves: _total(moves).hbm_bytes,
            default=(),
        )
    if one.opcode in ("call", "async-start"):
        return _of_computation(one.called("to_apply") or one.called("calls"), computations)
    if one.opcode in ("copy-start", "slice-start"):
        target, source = _ends(one, known)
        size = target.padded * ((not target.space) + (not source.space))
        op_name = users.get(one.name, one).op_name if target.space else one.op_name
        evicts = bool(source.space and not target.space)
        return (Move(one.name, op_name, evicts, Traffic(size)),)
    operands = [array for name in one.operands for array in known[name].results]
    moved = sum(array.moved for array in (*operands, *_made(one)))
    traffic, sent = _sent(one)
    return (Move(one.name, one.op_name, False, Traffic(moved) + traffic, sent),)


def _is_still_call(one: _Instruction) -> bool:
    return any(f'"{name}"' in one.rest for name in _STILL_CALLS)


def _ends(one: _Instruction, known: Mapping[str, _Instruction]) -> tuple[_Array, _Array]:
    """Where an asynchronous copy goes to and comes from."""
    target = one.results[0] if one.opcode == "copy-start" else one.results[1]
    return target, known[one.operands[0]].results[0]


def _made(one: _Instruction) -> Iterable[_Array]:
    """The results of an instruction, without its operands where a start repeats them."""
    if one.opcode in ("all-gather-start", "collective-permute-start"):
        count = len(one.operands)
        return one.results[count : 2 * count]
    return one.results


def _sent(one: _Instruction) -> tuple[Traffic, tuple[tuple[tuple[int, ...], int], ...]]:
    """What a collective sends between devices, all in all and array by array."""
    if one.kind not in (*_REDUCED, *_GATHERED):
        return Traffic(), ()
    arrays = tuple((array.sides, array.bytes) for array in _made(one))
    size = float(sum(each for _, each in arrays))
    if one.kind in _REDUCED:
        return Traffic(reduced_bytes=size), arrays
    return Traffic(gathered_bytes=size), arrays


def _fused_collectives(
    one: _Instruction, computations: Mapping[str, list[_Instruction]]
) -> Iterable[tuple[_Instruction, str]]:
    """The collectives inside a fusion, each with what names its chain."""
    if one.opcode != "fusion":
        return
    for inner in computations[one.called("calls")]:
        if inner.kind in (*_REDUCED, *_GATHERED):
            chain = _CHAIN.search(inner.rest)
            yield inner, f"{inner.kind} {chain[1] if chain else inner.name}"


def _trips(loop: _Instruction, computations: Mapping[str, list[_Instruction]]) -> int:
    """How often a loop runs: it counts from 0 up to what its condition compares with."""
    if told := _TRIPS.search(loop.rest):
        return int(told[1])
    condition = computations[loop.called("condition")]
    known = {one.name: one for one in condition}
    for one in condition:
        if one.opcode == "compare" and "direction=LT" in one.rest:
            for name in one.operands:
                if known[name].opcode == "constant":
                    return int(known[name].inside)
    raise ValueError(f"the length of a loop, {loop.name}, cannot be read")
