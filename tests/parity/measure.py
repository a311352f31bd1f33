"""How far hpt_jax and PyTorch are apart, in double and in single precision.

    python tests/parity/measure.py

prints the table of docs/fidelity.md, in four minutes; needs the extra `torch`. Errors are relative
L2 errors against PyTorch in double precision, of the worst tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import ours
import resnets
import scenarios
import supervised
import theirs
import torch
from compare import Trace, errors
from scenarios import Scenario

# What of a step's trace each row is about.
PARTS = {
    "loss": r"loss",
    "logits": r"logits",
    "query encoder": r"query/.*(weight|bias)",
    "key encoder": r"key/.*(weight|bias)",
    "running statistics": r".*running_(mean|var)",
    "queue": r"queue",
}


def worst(found: Trace, expected: Trace) -> float:
    """The error of the worst tensor, whatever the precision it was computed in."""
    double = {name: np.asarray(value, np.float64) for name, value in found.items()}
    return max(errors(double, {n: np.asarray(v, np.float64) for n, v in expected.items()}).values())


def row(what: str, double: Trace, single: Trace, torchs_single: Trace, expected: Trace) -> str:
    """A line of the table."""
    found = (double, single, torchs_single)
    return f"| {what} | " + " | ".join(f"{worst(one, expected):.0e}" for one in found) + " |"


def of_resnets() -> Iterator[str]:
    """Rows on full-size backbones."""
    names = ("every block, evaluation", "every block, training", "running statistics, 3 batches")
    for arch in ("resnet18", "resnet50"):
        given = (
            (*resnets.our_maps(arch), resnets.our_gradients(arch)),
            (*resnets.our_maps(arch, "float32"), resnets.our_gradients(arch, "float32")),
            torchs(arch, torch.float32),
            torchs(arch, torch.float64),
        )
        for name, *traces in zip((*names, "every gradient"), *given, strict=True):
            yield row(f"{arch}: {name}", *traces)


def torchs(arch: str, dtype: torch.dtype) -> tuple[Trace, ...]:
    """Everything that torchvision's ResNet computes."""
    return (*resnets.torchs_maps(arch, dtype), resnets.torchs_gradients(arch, dtype))


def of_steps(name: str, scenario: Scenario) -> Iterator[str]:
    """Rows on the first and the last step of a training."""
    traces = (
        ours.trace(scenario),
        ours.trace(scenario, "float32"),
        theirs.trace(scenario, torch.float32),
        theirs.trace(scenario),
    )
    for step in (0, scenario.steps - 1):
        for part, pattern in PARTS.items():
            selected = [
                {n: v for n, v in trace.items() if re.fullmatch(f"{step}/({pattern})", n)}
                for trace in traces
            ]
            if selected[0]:
                yield row(f"{name}, step {step + 1}: {part}", *selected)


def of_supervised() -> Iterator[str]:
    """Rows on the paper's probe and on fine-tuning."""
    for several in (False, True):
        labels = "several labels" if several else "one label"
        yield row(
            f"probe, {supervised.PROBE_STEPS} steps, {labels}",
            supervised.our_probes(several),
            supervised.our_probes(several, "float32"),
            supervised.torchs_probes(several, torch.float32),
            supervised.torchs_probes(several),
        )
        yield row(
            f"fine-tuning, {supervised.FINETUNE_STEPS} steps, {labels}",
            supervised.our_finetuning(several, 0.0),
            supervised.our_finetuning(several, 0.0, dtype="float32"),
            supervised.torchs_finetuning(several, 0.0, torch.float32),
            supervised.torchs_finetuning(several, 0.0),
        )


def main() -> None:
    """Prints the table, line by line."""
    print("| what | float64 | float32 | PyTorch's float32 |\n|---|---|---|---|")
    for line in (*of_resnets(), *of_supervised()):
        print(line, flush=True)
    trainings = {
        "MoCo-v2, ResNet-50": scenarios.FULL_SIZE["resnet50"],
        "HPT-BN": scenarios.GOLDEN["hpt_bn"],
        "`statistics`": scenarios.GOLDEN["statistics"],
    }
    for name, scenario in trainings.items():
        for line in of_steps(name, scenario):
            print(line, flush=True)


if __name__ == "__main__":
    main()
