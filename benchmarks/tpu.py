"""What the full step moves on TPUs that are not here, by compilation: nothing is run on them.

ResNet-50, bfloat16, 224 px, a queue of 65536, the whole augmentation in the step; 64 images a chip
in batch-norm groups of 32, on 4 and on 256 chips of v5e. HBM bytes are counted in the scheduled
program by `hpt_jax.forecast.hlo`, whose counts tests/test_forecast_hlo.py checks by hand on toy
programs; the peak of memory is the compiler's. DIR/tpu.md tells what moves the bytes: copies to
on-chip memory are their user's, copies from there are an item of their own.

Model FLOPs are those of both encoders, their heads and the logits, two for each multiply-add, taps
that meet the padding included, quoted to a tenth of a GFLOP. They are counted in the traced step of
a policy without blur, less the two metrics that multiply with the queue; a closed form of the
whole is in tests/test_flops.py. The step has besides these the blur's products, 0.3
GFLOP an image.

The text of the compiled programs stays in DIR/tpu_4_chips.txt and DIR/tpu_256_chips.txt.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import run, table
from hpt_jax import config, flops, moco, parallel, training
from hpt_jax.augment.policies import POLICIES
from hpt_jax.forecast import hlo, measure, program

IMAGES, GROUP, SIZE = 64, 32, 224  # images of a chip, of a group; pixels of a side
TOPOLOGIES = {4: "v5e:2x2", 256: "v5e:16x16"}
_AMBITIOUS = {4: ("tpu_hbm_ambitious",), 256: ()}
MINUTES = 60.0  # for one compile
STAGE = config.Stage(
    batch_size=IMAGES,
    image_size=SIZE,
    model=config.Model(bn_groups=IMAGES // GROUP, dtype="bfloat16"),
    moco=config.MoCo(queue_size=65536),
)
# Item -> what is in the named scopes of its instructions; the first that fits. 'transpose' is what
# JAX calls a backward pass.
ITEMS = {
    "augmentation": ("augmentation",),
    "queue, logits, metrics": ("contrast",),
    "query backward, blocks": ("queries", "transpose(", "ResNet._bottleneck"),
    "query backward, stem and max-pool": ("queries", "transpose(", "ResNet"),
    "query forward, blocks": ("queries", "ResNet._bottleneck"),
    "query forward, stem and max-pool": ("queries", "ResNet"),
    "key forward, blocks": ("keys", "ResNet._bottleneck"),
    "key forward, stem and max-pool": ("keys", "ResNet"),
    "heads, parts of the batch, sums of gradients": ("/queries",),
    "keys' head, parts of the batch": ("/keys",),
}
EVICTIONS = "from on-chip memory: saved activations, state"
REST = "optimiser, momentum update, all-reduce, finite check"


def rows(asked: run.Asked) -> Iterator[table.Measured | table.Skipped]:
    """FLOPs, then HBM and peak on each topology, then images that travel."""
    yield table.Measured("tpu_model_flops", round(model_flops() / 1e9, 1))
    travelled, tables = 0.0, []
    for chips, topology in TOPOLOGIES.items():
        hbm, peak = f"tpu_hbm_{chips}_chips", f"tpu_peak_{chips}_chips"
        kept = asked.out / f"tpu_{chips}_chips.txt"
        answer = compiled(topology, chips, kept)
        if why := answer.get("problem"):
            yield from (table.Skipped(name, why) for name in (hbm, peak, *_AMBITIOUS[chips]))
            continue
        for name in (hbm, *_AMBITIOUS[chips]):
            yield table.Measured(name, answer["hbm_bytes"] / 1e9)
        yield table.Measured(peak, answer["memory_bytes"] / 2**30)
        moves = hlo.moves_of(kept.read_text())
        travelled += image_bytes(moves)
        tables.append(f"## {topology}\n\n{itemised(moves)}")
    if len(tables) < len(TOPOLOGIES):
        yield table.Skipped("tpu_images_in_collectives", "not all programs are there")
        return
    yield table.Measured("tpu_images_in_collectives", travelled)
    text = "\n".join(tables)
    (asked.out / "tpu.md").write_text(text)
    print(text)


def compiled(topology: str, chips: int, kept: Path) -> dict[str, Any]:
    """What `measure.ask` says of the step; the program's text goes to a file."""
    if importlib.util.find_spec("libtpu") is None:
        return {"problem": "needs the extra tpu: pip install -e '.[tpu]'"}
    stage = program.at_batch(STAGE, IMAGES, chips)
    return measure.ask(measure.Question(stage, topology, text=kept.absolute()), MINUTES)


def model_flops() -> float:
    """FLOPs an image of both encoders, heads and logits, forward and backward."""
    stage = dataclasses.replace(STAGE, augment=POLICIES["crop"])
    devices = parallel.make_devices(1)
    settings = moco.make_settings(stage, training.make_model(stage.model, devices), 3)
    counted = flops.of_program(training.traced_step(moco, settings, devices, 3).jaxpr)
    metrics = 2 * settings.dim * (2 * settings.queue_size + settings.batch_size)
    return counted / settings.batch_size - metrics


def image_bytes(moves: Iterable[hlo.Move]) -> float:
    """Bytes of the arrays with images in them that collectives carry, one run of each."""
    return math.fsum(
        size
        for move in moves
        for sides, size in move.sent
        # Sides of their own, or flattened to one.
        if sides.count(SIZE) >= 2 or any(side and side % SIZE**2 == 0 for side in sides)
    )


def item_of(move: hlo.Move) -> str:
    """Which row of the table a move belongs to."""
    if move.evicts:
        return EVICTIONS
    fitting = (item for item, scopes in ITEMS.items() if all(s in move.op_name for s in scopes))
    return next(fitting, REST)


def itemised(moves: Iterable[hlo.Move]) -> str:
    """GB of HBM of each item, most first, as Markdown."""
    moved: collections.Counter[str] = collections.Counter()
    for move in moves:
        moved[item_of(move)] += move.traffic.hbm_bytes / 1e9
    lines = [f"| {item} | {size:.2f} |" for item, size in moved.most_common()]
    total = f"| all | {sum(moved.values()):.2f} |"
    return "\n".join(("| what | GB of HBM |", "|---|---|", *lines, total, ""))
