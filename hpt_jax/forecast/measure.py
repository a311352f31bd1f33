"""One compile in a process of its own, which may crash or take too long: both are results.

The process is `python -m hpt_jax.forecast.measure`; it reads a `Question` and prints an answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hpt_jax import config as config_lib
from hpt_jax.errors import UserError
from hpt_jax.forecast.chips import chip_of

# Raised by hand when the same program would be counted differently.
COUNT_VERSION = 1
_COMMAND = (sys.executable, "-m", "hpt_jax.forecast.measure")
# libtpu looks for a TPU, and for other processes that have it, unless it is told not to. What is
# compiled is what a run compiles, and nothing that was kept: a kept program has no text.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
# What compiles for each platform.
_COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax-cuda12-plugin", "nvidia-cudnn-cu12")}
_CHECK_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Question:
    """What to compile.

    Attributes:
      stage: at the batch of the topology.
      topology: such as 'v5e:2x2'.
      known: keys of programs that are measured already; such a one is not compiled.
      text: a file that gets the text of the compiled program; None: it is not kept.
    """

    stage: config_lib.Stage
    topology: str
    known: frozenset[str] = frozenset()
    text: Path | None = None


def ask(question: Question, minutes: float) -> dict[str, Any]:
    """Compiles in another process.

    Args:
      question: what.
      minutes: after which it is given up.

    Returns:
      'key', of the program and of what compiles it, and, unless it is known, what `_compiled` says;
      or 'problem', why there is no answer.
    """
    return _answer(pickle.dumps(question), 60 * minutes)


def chips_of(topology: str) -> int:
    """How many chips a topology has, by its compiler.

    Raises:
      UserError: that is not installed, or knows no such topology.
    """
    check_compiler(topology)
    answer = _answer(pickle.dumps(topology), _CHECK_SECONDS)
    if "problem" in answer:
        raise UserError("--topology", topology, answer["problem"], "Choose another.")
    return answer["chips"]


def check_compiler(topology: str) -> None:
    """Checks that what compiles for a topology is installed.

    Raises:
      UserError: it is not.
    """
    platform = chip_of(topology).platform
    for package in _COMPILERS[platform]:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            expected = f"{package}, which compiles for it and needs no {platform.upper()} device"
            fix = f"Run pip install 'hpt_jax[{platform}]'."
            raise UserError("--topology", topology, expected, fix) from None


def _answer(question: bytes, seconds: float) -> dict[str, Any]:
    environment = {**os.environ, **_ENVIRONMENT}
    try:
        done = subprocess.run(
            _COMMAND, input=question, capture_output=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"not compiled within {seconds / 60:g} minutes"}
    return answer_of(done.returncode, done.stdout, done.stderr)


def answer_of(code: int, output: bytes, errors: bytes) -> dict[str, Any]:
    """What a process has answered: its last line, or how it ended without one."""
    lines = output.decode(errors="replace").splitlines()
    if code == 0 and lines:
        return json.loads(lines[-1])
    if code < 0:
        return {"problem": f"the compiler crashed ({signal.Signals(-code).name})"}
    said = errors.decode(errors="replace").strip().rpartition("\n")[2]
    return {"problem": f"the compiler gave up: {said}"}


def _main() -> None:
    question = pickle.load(sys.stdin.buffer)  # of the process that started this one
    answer = _topology(question) if isinstance(question, str) else _compiled(question)
    print(json.dumps(answer))


def _topology(name: str) -> dict[str, Any]:
    from hpt_jax.forecast import program

    try:
        return {"chips": program.topology_devices(name).count}
    except UserError as error:
        return {"problem": error.mistakes[0].expected}


def _compiled(question: Question) -> dict[str, Any]:
    import jax

    from hpt_jax import flops
    from hpt_jax.forecast import hlo, program

    devices = program.topology_devices(question.topology)
    traced = program.traced(question.stage, devices)
    lowered = traced.lower()
    key = key_of(lowered.as_text(), question.topology)
    if key in question.known:
        return {"key": key}
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:  # some compilers say so where it does not fit
        return {"problem": f"not compiled: {str(error).partition(chr(10))[0]}"}
    seconds = time.monotonic() - began
    text = compiled.as_text()
    if question.text:
        question.text.write_text(text)
    traffic = hlo.traffic_of(text)
    return {
        "key": key,
        "compile_seconds": round(seconds, 1),
        "flops": flops.of_program(traced.jaxpr),
        "memory_bytes": compiled.memory_analysis().peak_memory_in_bytes,
        **dataclasses.asdict(traffic),
    }


def key_of(program: str, topology: str) -> str:
    """What a measurement depends on: the program, what compiles it for what, and how we count."""
    packages = ("jax", *_COMPILERS[chip_of(topology).platform])
    versions = [importlib.metadata.version(name) for name in packages]
    parts = [program, topology, *versions, str(COUNT_VERSION)]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


if __name__ == "__main__":
    _main()
