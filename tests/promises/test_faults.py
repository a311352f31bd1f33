"""What happens to disks, files and numbers while a run lasts, and that nothing is lost by it."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image
from support import folder_of, last_stage, saved, steps_in, tiny_config

from hpt_jax import main, pretrain, replay, run, training
from hpt_jax.data.order import batch_indices
from hpt_jax.errors import UserError
from hpt_jax.library import Library
from hpt_jax.parallel import make_devices
from hpt_jax.signals import Interrupted, Stop
from hpt_jax.telemetry.display import Display
from hpt_jax.weights.load import load_stage
from hpt_jax.workdir import StageFolder


def config_of(images: Path) -> config_dict.ConfigDict:
    """Base -> target, a checkpoint every second step, a row every step."""
    config = tiny_config(images)
    config.log_every_steps = 1
    config.save_every_steps = 2
    config.target = "folder:target"
    config.evaluations = ("knn",)
    config.stages.base = dict(dataset="folder:base", steps=6)
    config.stages.target = dict(dataset="folder:target", steps=8)
    config.arms.update({"random": (), "S": ("base",), "B+T": ("base", "target")})
    return config


def results(config: config_dict.ConfigDict, root: Path) -> dict[str, object]:
    """All that a run leaves for others to read, bit by bit."""
    found: dict[str, object] = {"results.csv": (root / "results.csv").read_bytes()}
    for arm in ("S", "B+T"):
        folder = folder_of(config, root, arm)
        found[f"{arm} metrics.csv"] = folder.metrics.read_bytes()
        for part in ("backbone", "state", "totals"):
            for name, value in saved(folder, part).items():
                found[f"{arm} {part}{name}"] = (value.dtype, value.tobytes())
    return found


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir in which everything is done."""
    root = tmp_path_factory.mktemp("whole")
    run.run(config_of(images), root)
    return root


@pytest.fixture
def workdir(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "run")


def damage(step: Path) -> None:
    """Flips one bit of the largest file of a checkpoint."""
    path = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def undo(folder: StageFolder) -> None:
    """As if the stage had not come to its end yet."""
    folder.done.unlink()
    shutil.rmtree(folder.path / "evaluations")


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    images: Path, whole: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(images)
    folder = folder_of(config, workdir, "B+T")
    undo(folder)
    damage(folder.checkpoints / "8")
    run.run(config, workdir)
    assert f"{folder.checkpoints / '8'}: damaged" in capsys.readouterr().out
    assert not (folder.checkpoints / "8.damaged").exists()  # for it was saved again
    assert results(config, workdir) == results(config, whole)


@pytest.mark.parametrize(
    "needed_by",
    [
        "a child",
        "a lineage",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("an evaluation", "a picture")),
    ],
)
def test_a_finished_stage_with_a_damaged_end_is_trained_on_where_it_is_needed(
    images: Path, whole: Path, workdir: Path, needed_by: str
) -> None:
    config = config_of(images)
    base, target = (folder_of(config, workdir, arm) for arm in ("S", "B+T"))
    if needed_by == "a child":
        shutil.rmtree(target.path)
    elif needed_by == "an evaluation":
        shutil.rmtree(base.path / "evaluations")
    elif needed_by == "a picture":
        next(base.path.glob("neighbours-*.png")).unlink()
    else:  # of a child, which is written again from what it began with
        target.lineage.write_text("")
    damage(base.checkpoints / "6")
    run.run(config, workdir)
    assert steps_in(base.checkpoints) == [4, 6]
    assert results(config, workdir) == results(config, whole)


def test_a_damaged_end_that_nothing_needs_is_left_alone(images: Path, workdir: Path) -> None:
    config = config_of(images)
    config.export = "B+T"
    base = folder_of(config, workdir, "S")
    damage(base.checkpoints / "6")
    run.run(config, workdir)
    assert base.is_done
    assert (base.checkpoints / "6").is_dir()


def test_a_stage_that_is_not_done_hands_nothing_over(images: Path, workdir: Path) -> None:
    folder = folder_of(config_of(images), workdir, "S")
    folder.done.unlink()
    with pytest.raises(UserError, match="not finished"):
        load_stage(folder)


def test_a_signal_that_comes_at_any_moment_of_the_loop_is_saved_first(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def due(*args: Any) -> bool:  # asked for after the loop has looked whether it is
        stop._asked = signal.SIGTERM
        return False

    monkeypatch.setattr(pretrain, "_due", due)
    with pytest.raises(Interrupted):
        run.run(config_of(images), tmp_path, stop=stop)
    folder = folder_of(config_of(images), tmp_path, "S")
    rows = len(folder.metrics.read_text().splitlines()) - 1
    assert steps_in(folder.checkpoints) == [rows] == [2]


def test_a_begun_stage_needs_its_parents_checkpoints_no_more(
    images: Path, whole: Path, workdir: Path
) -> None:
    config = config_of(images)
    base, target = (folder_of(config, workdir, arm) for arm in ("S", "B+T"))
    undo(target)
    shutil.rmtree(target.checkpoints / "8")
    kept = base.checkpoints.rename(base.path / "elsewhere")
    run.run(config, workdir)
    kept.rename(base.checkpoints)
    assert results(config, workdir) == results(config, whole)


def test_a_deleted_parent_is_named_and_trained_again_if_the_user_wants(
    images: Path, whole: Path, workdir: Path
) -> None:
    config = config_of(images)
    base, target = (folder_of(config, workdir, arm) for arm in ("S", "B+T"))
    shutil.rmtree(target.path)
    shutil.rmtree(base.checkpoints)
    with pytest.raises(UserError, match=f"delete {base.path}, and it is trained again"):
        run.run(config, workdir)
    assert not target.path.exists()
    shutil.rmtree(base.path)
    run.run(config, workdir)
    assert results(config, workdir) == results(config, whole)


CONFIG = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_faults import config_of

def get_config():
    return config_of(Path({images!r}))
"""


@pytest.fixture
def config_file(images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(here=str(Path(__file__).parent), images=str(images)))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
            file.flush()


def test_a_workdir_on_a_disk_for_reading_alone_is_refused(
    images: Path, disk: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert main.main([f"--config={config_file}", f"--workdir={disk / 'run'}"]) == 2
    assert f"a folder that can be written, but {disk} cannot" in capsys.readouterr().err


def test_a_full_disk_stops_the_run_and_loses_nothing(
    images: Path,
    whole: Path,
    disk: Path,
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [f"--config={config_file}", f"--workdir={disk / 'run'}"]
    take = training.Training.take

    def spoiled(self: training.Training, carry: Any, batch: Any, step: int) -> Any:
        if self.stage.name == "target" and step == 5:
            fill(disk)
        return take(self, carry, batch, step)

    monkeypatch.setattr(training.Training, "take", spoiled)
    assert main.main(command) == 2
    stderr = capsys.readouterr().err
    assert "No space left on device" in stderr
    assert str(disk / "run") in stderr
    assert "Traceback" not in stderr
    monkeypatch.setattr(training.Training, "take", take)
    config = config_of(images)
    # The save after step 4 may have been under way.
    steps = steps_in(folder_of(config, disk / "run", "B+T").checkpoints)
    assert steps in ([2], [2, 4])
    (disk / "filler").unlink()
    assert main.main(command) == 0
    assert results(config, disk / "run") == results(config, whole)


def test_divergence_names_its_step_which_can_be_replayed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(images)
    config.log_every_steps = 3
    rate = training.learning_rate
    # Step 6 is the seventh; its loss is still finite, the weights after it are not.
    monkeypatch.setattr(
        training, "learning_rate", lambda *args: math.inf if args[1] == 6 else rate(*args)
    )
    with pytest.raises(UserError) as raised:
        run.run(config, tmp_path)
    folder = folder_of(config, tmp_path, "B+T")
    said = str(raised.value)
    assert f"{folder.path.name} diverged: at step 7 " in said
    assert f"python -m hpt_jax.replay {folder.path} 7" in said
    assert "mean up to step 3: " in said
    assert "mean up to step 6: " in said
    assert "The last checkpoint is of step 6." in said
    assert steps_in(folder.checkpoints) == [4, 6]

    before = sorted(p for p in tmp_path.rglob("*") if "compilation_cache" not in str(p))
    found = replay.replay(folder.path, 7, Display())
    assert [row["step"] for row in found["metrics"]] == [7]
    assert all(math.isfinite(value) for value in found["metrics"][0].values())
    assert "backbone/params/conv1/kernel" in found["bad"]
    stage = last_stage(config, "B+T")
    data = Library(str(images), make_devices(1), Display()).of_stage(stage)
    assert data is not None
    rows = data.rows[batch_indices(stage.seed, 6, 8, len(data.rows))]
    assert found["images"] == [data.dataset.images.name_of(int(data.store.index[r])) for r in rows]
    after = sorted(p for p in tmp_path.rglob("*") if "compilation_cache" not in str(p))
    assert {p.name for p in set(after) - set(before)} == {"replay-7.json", "replay-7.png"}
    # Eight pairs in rows of two, each view enlarged six times.
    assert Image.open(folder.path / "replay-7.png").size == (4 * 96, 4 * 96)


@pytest.mark.parametrize("step", [2, 3, 8])
def test_a_replayed_step_is_the_step_that_was(images: Path, workdir: Path, step: int) -> None:
    config = config_of(images)
    folder = folder_of(config, workdir, "B+T")
    if step < 8:  # from the parent's backbone; else from the checkpoint of step 6
        shutil.rmtree(folder.checkpoints)
    assert replay.main([str(folder.path), str(step)]) == 0
    found = json.loads((folder.path / f"replay-{step}.json").read_text())
    assert found["bad"] == []
    with folder.metrics.open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert [row["step"] for row in found["metrics"]] == (
        [7, 8] if step == 8 else [*range(1, step + 1)]
    )
    for row in found["metrics"]:
        for name, value in row.items():
            assert np.float32(value) == np.float32(rows[row["step"]][name]), (row["step"], name)


@pytest.mark.parametrize(
    ("stage", "step", "said"),
    [
        ("target-*", "9", "from 1 to 8"),
        ("target-*", "0", "from 1 to 8"),
        ("random-*", "1", "one that takes steps"),
        ("random-*/..", "1", "a plan of its workdir"),
    ],
)
def test_a_replay_of_what_never_was_is_refused(
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    step: str,
    said: str,
) -> None:
    (folder,) = (whole / "stages").glob(stage)
    assert replay.main([str(folder), step]) == 2
    assert said in capsys.readouterr().err
