"""What the documentation tells to run, runs: each block as it stands, in a sandbox.

By `pytest` every command is asked for its plan (a dry run) and code is compiled; everything is done
by `pytest -m slow`, and by `pytest -m torch` where PyTorch is needed. What is put in for the words
in capitals, what is appended for the sake of time, and what is excused and why, stands here.
"""

from __future__ import annotations

import re
import shutil

import commands
import jax
import numpy as np
import pytest
from PIL import Image

from hpt_jax import main
from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.weights import export

EXCUSES = {
    "pip": "the CI script sets up environments with these extras",
    "pytest": "the CI script, and whoever asks for the longer ones, runs the tests",
    "tensorboard": "serves until it is stopped",
    "python -m benchmarks.run": "takes minutes to print a time, and promises none",
    "python benchmarks/saving.py": "the same",
    "python benchmarks/broken_runs.py": "takes an hour, and sets of images that are not shipped",
    "python benchmarks/queues.py": "the same",
    "python benchmarks/schedules.py": "the same",
    "python benchmarks/stopping.py": "takes hours, and the same sets",
    "python docs/api/build.py": "would write these pages; test_docs_api.py compares what it writes",
    "python docs/hpt/build.py": "the same; test_docs_figures.py",
    "python docs/reproduction/build.py": "the same; test_docs_reproduction.py",
    "python tests/golden_configs/make.py": "the same; test_golden_configs.py",
    "python tests/parity/golden.py": "the same; test_parity_golden.py",
    "python tests/parity/measure.py": "takes minutes; test_parity_full_size.py asserts its bounds",
    "python tests/promises/bad_input.py": "test_bad_input.py does what it tabulates",
    "python -m hpt_jax.forecast": "takes minutes and compilers; test_forecast.py asks less",
    "python -m hpt_jax.jobs": "wants a scheduler; test_many_processes.py runs its jobs",
    "python -m hpt_jax.replay": "replays a run that diverged; test_faults.py makes one",
}
# Studies of hours, of sets that are not at hand: their plans are asked for, and nothing is trained.
# tests/promises/test_all_studies.py trains each of them, small.
PLANNED = ("docs/reproduction.md", "docs/scale.md", "docs/studies.md")
NEEDS_TORCH = ("docs/weights.md", "docs/howto/export.md")
TUTORIAL = "docs/tutorial.md"  # which needs it too, and takes minutes

_TINY = ("image_size=16", "batch_size=16", "model.width=4", "moco.queue_size=32")
_ONCE = ("seeds=0", "evaluations=linear,knn")
_TARGET_QUEUES = tuple(
    f"stages.{name}.moco.queue_size=32"
    for name in ("scratch", "scratch_long", "target", "target_bn")
)
# Config file -> the fields that are set after all others, so that it ends in seconds.
FIELDS = {
    "configs/quickstart.py": (
        *(*_ONCE, "model.width=4", "stages.base.steps=2", "stages.scratch.steps=1,2"),
        *("stages.target.steps=1,2", "stages.target_bn.steps=1,2"),
    ),
    "configs/aerial.py": (
        *(*_ONCE, *_TINY, *_TARGET_QUEUES, "stages.base.steps=2", "stages.source.steps=2"),
        *("stages.scratch.steps=1,2", "stages.scratch_long.steps=5", "stages.target.steps=1,2"),
        "stages.target_bn.steps=1,2",
    ),
    "configs/probes.py": (
        *(*_ONCE, *_TINY, *_TARGET_QUEUES, "stages.base.steps=2", "stages.source.steps=2"),
        *("stages.scratch.steps=2", "stages.target.steps=2", "linear_sgd.steps=2"),
        "linear_sgd.eval_every=1",
    ),
    "configs/adapt.py": ("steps=3", "batch_size=16", "image_size=32"),
    "configs/scans.py": ("steps=3",),
    "configs/tiles.py": ("steps=3",),
    "configs/chain.py": (
        *(*_ONCE, *_TINY, "stages.base.steps=2", "stages.source.steps=2"),
        "stages.target.steps=2",
    ),
    "configs/chain_from_file.py": (
        *(*_ONCE, "image_size=32", "batch_size=16", "moco.queue_size=32"),
        *("stages.source.steps=2", "stages.target.steps=2"),
    ),
    "configs/lengths.py": (*_ONCE, *_TINY, "stages.target.steps=2,3"),
    "configs/tutorial_base.py": ("stages.base.steps=2", "batch_size=16"),
}
# Word of a command -> what is appended to it.
MORE = {file: [f"--config.{field}" for field in fields] for file, fields in FIELDS.items()}
MORE["import"] = ["--arch", "resnet18", "--width", "64"]  # which the file for SRC is of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A backbone in a file, as another run exports it: ResNet-18 as timm has it."""
    rng = np.random.default_rng(0)

    def filled(leaf):
        kernel = leaf.ndim > 1
        return (rng.normal(0, 0.05, leaf.shape) if kernel else np.ones(leaf.shape)).astype("f4")

    like = abstract_backbone(ResNet("resnet18", 64, "imagenet", 2), 3)
    backbone = jax.tree.map(filled, like).replace(pixel_window=np.zeros(2, np.int32))
    facts = {"arch": "resnet18", "width": 64, "stem": "imagenet", "stem_stride": 2, "channels": 3}
    folder = tmp_path_factory.mktemp("checkpoint")
    return export.export_backbone(backbone, facts | {"lineage": "random"}, folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders of small images: PHOTOS, FIELD, MINE and those of the triple `aerial`."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("photos", "field", "mine", "tinyimagenet_64_20k", "aid_64", "rsscn7_64"):
        for index in range(40):
            pixels = rng.integers(0, 156, (24, 24, 3)) + 100 * (index % 2)
            path = root / name / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture
def sandbox(tmp_path, photos, checkpoint):
    """Makes the sandbox of a page: what a clone holds that its blocks may read or change."""
    for name in ("configs", "hpt_jax"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(commands.ROOT / name, tmp_path / name, ignore=ignore)
    placeholders = {
        "PATH": str(photos / "mine"), "DIR": str(photos), "PHOTOS": str(photos / "photos"),
        "FIELD": str(photos / "field"), "MINE": str(photos / "mine"),
        "CHECKPOINT": str(checkpoint), "FILE": str(checkpoint), "SRC": str(checkpoint),
        "DST": "runs/imported", "OUT": "runs/exported", "FORMAT": "safetensors",
        "NAME": "separability",
    }  # fmt: skip

    def make(dry):
        return commands.Sandbox(tmp_path, placeholders, EXCUSES, {} if dry else MORE, dry)

    return make


def pages_with_code(*, torch):
    return [
        page
        for page in commands.PAGES
        if (page in NEEDS_TORCH) == torch and any(commands.runnable([page]))
    ]


def test_code_stands_in_fences_that_name_their_language():
    found = {
        (one.page, one.line)
        for page in commands.PAGES
        for one in commands.blocks(page)
        if one.language not in commands.LANGUAGES
    }
    assert not found


def test_every_excuse_is_of_a_command_that_is_told():
    texts = [one.text for one in commands.runnable()]
    texts += [span for page in commands.PAGES for span in commands.spans(page)]
    texts.append((commands.ROOT / "docs/api/README.md").read_text("utf-8"))
    assert not [one for one in EXCUSES if not any(one in text for text in texts)]


def test_every_command_within_a_line_is_excused():
    """Those that are to be run have a block of their own."""
    spans = [span for page in commands.PAGES for span in commands.spans(page)]
    called = [re.sub(r"^\w+=\w+ ", "", span).split() for span in spans]
    assert len(called) > 10
    assert not [one for one in called if not commands.excuse_of(one, EXCUSES)]


@pytest.mark.parametrize("page", pages_with_code(torch=False) + pages_with_code(torch=True))
def test_every_command_has_a_plan(page, sandbox, monkeypatch, capfd):
    """In this process: a dry run needs a command's config, fields and values to be right."""
    dry = sandbox(dry=True)
    monkeypatch.chdir(dry.folder)
    changed = any(one.language == "diff" for one in commands.runnable([page]))
    for block in commands.runnable([page]):
        if block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec")
        called = dry.run(block)
        assert bool(called) == (block.language == "sh"), f"{page}:{block.line} calls nothing"
        for command in called:
            if commands.excuse_of(command, EXCUSES):
                continue
            assert command[:2] == ["python", "-m"], command
            # A page that changes the package is run as a whole, by the slow tests.
            if command[2] == "hpt_jax.main" and not changed:
                code = main.main([*command[3:], "--config.dry_run=True"])
                assert code == 0, f"{page}:{block.line}\n{capfd.readouterr().err}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in pages_with_code(torch=False) if p not in PLANNED])
def test_every_block_runs(page, sandbox):
    if page == TUTORIAL:
        pytest.importorskip("timm")
    for block in commands.runnable([page]):
        sandbox(dry=False).run(block)


@pytest.mark.torch
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page == "docs/howto/export.md"))
        for page in pages_with_code(torch=True)
    ],
)
def test_every_block_that_needs_pytorch_runs(page, sandbox):
    pytest.importorskip("timm")
    for block in commands.runnable([page]):
        sandbox(dry=False).run(block)
