"""The loop of a stage: what it sees, what it survives, in which precision it runs."""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image
from support import folder_of, last_stage, saved, tiny_config
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from hpt_jax import checkpoints, moco, parallel, pretrain, run
from hpt_jax.errors import UserError
from hpt_jax.library import Library
from hpt_jax.telemetry import writers
from hpt_jax.telemetry.display import Display
from hpt_jax.telemetry.writers import MetricsWriter


def config_of(images: Path, steps: int, **stage: Any) -> config_dict.ConfigDict:
    config = tiny_config(images)
    config.stages.target = dict(dataset="folder:target", steps=steps, **stage)
    config.arms.T = ("target",)
    return config


PIPELINES = pytest.mark.parametrize("pipeline", ["resident", "host"])


@PIPELINES
def test_every_example_is_seen_once_per_epoch(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str
) -> None:
    shown: dict[int, list[int]] = {}
    plan_batch = moco.plan_batch

    def recorded(settings: Any, seed: int, step: int, rows: np.ndarray, sizes: Any) -> Any:
        if seed == 0:  # the stage's: a look at the features has its own
            shown[step] = rows.tolist()
        return plan_batch(settings, seed, step, rows, sizes)

    monkeypatch.setattr(moco, "plan_batch", recorded)
    config = config_of(images, steps=11)  # 88 slots: three epochs of 29 images, and one more
    config.input.pipeline = pipeline
    run.run(config, tmp_path)
    seen = [row for step in sorted(shown) for row in shown[step]]
    epochs = [sorted(seen[first : first + 29]) for first in (0, 29, 58)]
    assert len(seen) == 88
    assert len(set(epochs[0])) == 29
    assert epochs[0] == epochs[1] == epochs[2]
    assert seen[:29] != seen[29:58]


def test_test_images_are_never_pretrained_on(images: Path, tmp_path: Path) -> None:
    stage = last_stage(config_of(images, steps=1), "T")
    data = Library(str(images), parallel.make_devices(1), Display()).of_stage(stage)
    assert data is not None
    assert not set(data.rows) & set(data.splits["test"])
    assert set(data.rows) == set(data.splits["train"]) | set(data.splits["val"])


class Stopped(Exception):
    """Stands in for a kill."""


@PIPELINES
def test_resume_is_bit_exact(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str
) -> None:
    config = config_of(images, steps=8)
    config.input.pipeline = pipeline
    config.save_every_steps = 3
    run.run(config, tmp_path / "whole")

    write = MetricsWriter.write

    def stop(self: MetricsWriter, step: int, scalars: Any) -> None:
        write(self, step, scalars)
        if step == 6:  # after a row was written that the newest checkpoint, 3, knows nothing of
            raise Stopped

    monkeypatch.setattr(MetricsWriter, "write", stop)
    with pytest.raises(Stopped):
        run.run(config, tmp_path / "resumed")
    monkeypatch.setattr(MetricsWriter, "write", write)
    folder = folder_of(config, tmp_path / "resumed", "T")
    assert not folder.is_done
    run.run(config, tmp_path / "resumed")

    whole = folder_of(config, tmp_path / "whole", "T")
    for part in ("backbone", "state", "totals"):
        expected, got = saved(whole, part), saved(folder, part)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
    for one, other in ((folder.metrics, whole.metrics), (folder.measures, whole.measures)):
        assert one.read_bytes() == other.read_bytes()
    assert folder.health.read_bytes() == whole.health.read_bytes()


@pytest.mark.slow
def test_bfloat16_trains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "patterns").mkdir()
    for index in range(64):
        pattern = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        pattern.resize((16, 16)).save(tmp_path / "patterns" / f"{index}.png")
    config = tiny_config(tmp_path)
    config.batch_size = 16
    config.model.dtype = "bfloat16"
    config.moco.queue_size = 32
    config.augment.update(policy="crop", crop_scale=(0.8, 1.0))
    config.log_every_steps = 10
    config.stages.target = dict(dataset="folder:patterns", steps=80)
    config.arms.T = ("target",)
    run.run(config, tmp_path / "run")

    folder = folder_of(config, tmp_path / "run", "T")
    with folder.metrics.open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    # Once the queue is full, at step 2, chance is a loss of ln(33) = 3.5, an accuracy of 1/33.
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    assert rows[-1]["accuracy"] > 4 / 33
    for name, value in saved(folder, "backbone").items():
        assert value.dtype == (np.int32 if "window" in name else np.float32), name


def test_a_stage_imports_no_tensorflow(images: Path, tmp_path: Path) -> None:
    """From files to checkpoints and curves, in a process of its own."""
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from support import tiny_config
        from hpt_jax import run
        config = tiny_config(Path({str(images)!r}))
        config.input.pipeline = "host"
        config.stages.target = dict(dataset="folder:target", steps=2)
        config.arms.T = ("target",)
        run.run(config, {str(tmp_path)!r})
        assert "tensorflow" not in sys.modules, "imported"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("stages/target-*/events.out.tfevents.*"))


def copy_one_class(images: Path, folder: Path) -> None:
    """The target's images of one class, in a folder without classes."""
    folder.mkdir()
    for path in (images / "target" / "class1").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def test_unlabelled_folder_can_be_pretrained_on(images: Path, tmp_path: Path) -> None:
    copy_one_class(images, tmp_path / "flat")
    config = config_of(images, steps=2)
    config.data_dir = str(tmp_path)
    config.stages.target.dataset = "folder:flat"
    run.run(config, tmp_path / "run")
    assert folder_of(config, tmp_path / "run", "T").is_done


def test_divergence_stops_the_run_and_names_the_learning_rate(images: Path, tmp_path: Path) -> None:
    config = config_of(images, steps=12)
    config.optimizer.learning_rate = 1e38
    with pytest.raises(UserError, match=r"optimizer\.learning_rate"):
        run.run(config, tmp_path)
    assert not folder_of(config, tmp_path, "T").is_done


def test_a_dataset_that_changed_under_an_unfinished_stage_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_one_class(images, tmp_path / "target")
    config = config_of(images, steps=4)
    config.data_dir = str(tmp_path)

    def stop(self: MetricsWriter, step: int, scalars: Any) -> None:
        raise Stopped

    monkeypatch.setattr(MetricsWriter, "write", stop)
    with pytest.raises(Stopped):
        run.run(config, tmp_path / "run")
    (tmp_path / "target" / "000.png").unlink()
    with pytest.raises(UserError, match=r"stages\.target\.dataset.*fingerprint"):
        run.run(config, tmp_path / "run")


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(images, steps=8)
    run.run(config, tmp_path / "still")

    config.save_every_minutes = 3.0
    looks, jumps, now = itertools.count(), itertools.cycle([10, -10, 0]), time.time
    years = 30  # from the true time

    def jumped() -> float:
        return now() + 365 * 86400 * (years + next(jumps))

    saved_at: list[int] = []
    save, write = checkpoints.Checkpoints.save, MetricsWriter.write

    def note(self: checkpoints.Checkpoints, step: int, tree: Any) -> None:
        saved_at.append(step)
        save(self, step, tree)

    def stop(self: MetricsWriter, step: int, scalars: Any) -> None:
        write(self, step, scalars)
        if step == 6:
            raise Stopped

    monkeypatch.setattr(checkpoints.Checkpoints, "save", note)
    monkeypatch.setattr(MetricsWriter, "write", stop)
    # For others, such as Orbax, the clock is wrong, but does not jump while they wait.
    monkeypatch.setattr(time, "time", lambda: now() + 365 * 86400 * years)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    # 20 seconds a look at the clock that cannot be set, of which each step takes some.
    ours = types.SimpleNamespace(time=jumped, monotonic=lambda: 20.0 * next(looks))
    for module in (pretrain, writers):
        monkeypatch.setattr(module, "time", ours)
    with pytest.raises(Stopped):
        run.run(config, tmp_path / "jumped")
    assert len(saved_at) == 1
    assert 1 < saved_at[0] < 6
    monkeypatch.setattr(MetricsWriter, "write", write)
    years = -30
    run.run(config, tmp_path / "jumped")

    still, folder = (folder_of(config, tmp_path / name, "T") for name in ("still", "jumped"))
    assert folder.metrics.read_bytes() == still.metrics.read_bytes()
    for name, value in saved(still, "backbone").items():
        np.testing.assert_array_equal(saved(folder, "backbone")[name], value, err_msg=name)
    # Of two runs, and of the neighbours before and after.
    assert len(list(folder.path.glob("events.out.tfevents.*"))) == 4
    events = EventAccumulator(str(folder.path))
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [2, 4, 6, 8]
