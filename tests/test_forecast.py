"""The forecast: rows, refusals, and compilers that crash or take too long."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from hpt_jax import config, moco, parallel, run, training
from hpt_jax.errors import UserError
from hpt_jax.forecast import __main__ as command
from hpt_jax.forecast import measure, program, rows
from hpt_jax.forecast import run as forecast
from hpt_jax.forecast.chips import CHIPS, GIB
from hpt_jax.telemetry.display import Display

ROW = rows.Row(
    "base", "v5e:2x2", 32, 4, 4, "bfloat16", "abc", "",
    flops=197e9, memory_bytes=2 * GIB, hbm_bytes=819e7, reduced_bytes=1e8, gathered_bytes=2e6,
    compile_seconds=60.0,
)  # fmt: skip
WORK = rows.Work(images=3600 * 128 * 100, ratio=2.5, stages=3)
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu"
)


def tiny():
    asked = config.default_config()
    asked.model.update(arch="resnet10", width=8, stem="small", bn_groups=2)
    asked.update(image_size=32, batch_size=32)
    asked.moco.update(queue_size=256, dim=8)
    asked.stages.base = {"dataset": "folder:nowhere", "steps": 1000}
    asked.stages.longer = {"dataset": "folder:nowhere", "steps": 2000}
    asked.stages.given = {"init": "random", "trainable": "nothing"}
    asked.arms = {"B": ("base",), "L": ("longer",), "G": ("given",)}
    return asked


def planned():
    return run.make_plan(tiny())


def test_a_step_takes_as_long_as_the_slowest_of_compute_memory_and_links():
    # 1 ms of compute, 10 ms of HBM; in a ring of 4: (2 x 100 + 2) MB x 3/4 over 200 GB/s.
    assert ROW.seconds == pytest.approx((1e-3, 10e-3, 0.7575e-3))
    assert (ROW.step_seconds, ROW.bound) == (pytest.approx(10e-3), "HBM")
    assert ROW.hours(WORK.images) == pytest.approx(1.0)
    faster = dataclasses.replace(ROW, hbm_bytes=0, flops=0)
    assert faster.bound == "the links between chips"
    assert dataclasses.replace(faster, flops=197e12).bound == "compute"


def test_what_fits_is_decided_by_memory_and_not_by_compiling():
    assert ROW.fits
    most = CHIPS["v5e"].memory
    assert dataclasses.replace(ROW, memory_bytes=most).fits
    assert not dataclasses.replace(ROW, memory_bytes=most + 1).fits
    assert not dataclasses.replace(ROW, problem="crashed").fits


def test_a_row_says_in_words_what_its_json_says():
    told, content = "\n".join(rows.sentences(ROW, WORK)), rows.as_json(ROW, WORK)
    assert "v5e:2x2, 32 images a chip: base, bfloat16, batch 128 in 4 groups of 32" in told
    assert "memory 2.00 GiB of 16: fits" in told
    assert "0.197 TFLOP, 8.19 GB of HBM, 100 MB reduced, 2 MB gathered" in told
    assert "10.0 ms at least, bound by HBM (compute 1.0, HBM 10.0, links 0.8)" in told
    assert "12,800 images/s at most" in told
    assert "base and all 3 stages: 60.0 min and 2.5 h at least, 2.5 h and 6.2 h at 40 %" in told
    assert content["fits"]
    assert content["step_ms"] == pytest.approx(10)
    assert content["hours_of_stage"] == pytest.approx(1)
    assert content["hours_of_all_stages"] == pytest.approx(2.5)


def test_the_largest_batch_is_of_those_compiled():
    fits, fails = (dataclasses.replace(ROW, images_per_chip=count) for count in (64, 128))
    fails = dataclasses.replace(fails, memory_bytes=17 * GIB)
    other = dataclasses.replace(ROW, topology="v4:2x2x1", problem="the compiler crashed")
    refused = dataclasses.replace(ROW, topology="v6e:2x2", problem="RESOURCE_EXHAUSTED: no memory")
    assert rows.largest([ROW, fits, fails, other, refused]) == [
        "v5e:2x2: the most that fits, of those compiled: 64 images a chip (128 do not)",
        "v4:2x2x1: the most that fits, of those compiled: none",
        "v6e:2x2: the most that fits, of those compiled: none (32 do not)",
    ]


def test_a_table_is_whole_after_each_row_and_knows_what_it_holds(tmp_path):
    path = tmp_path / "new" / "table.json"
    table = rows.Table(path)
    table.add(dataclasses.replace(ROW, key="", problem="not compiled within 1 minutes"), WORK)
    assert rows.Table(path).measured == {}
    table.add(ROW, WORK)
    failed = dataclasses.replace(ROW, images_per_chip=64, key="", problem="crashed")
    table.add(failed, WORK)
    assert [one["problem"] for one in json.loads(path.read_text())["rows"]] == ["", "crashed"]
    assert rows.Table(path).measured == {"abc": ROW}


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(UserError, match="--out"):
        rows.Table(path)
    assert path.read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("images", "chips", "groups"), [(8, 2, 2), (16, 4, 4), (32, 4, 8), (24, 2, 4), (2, 128, 128)]
)
def test_groups_are_a_chips_own_and_no_larger_than_the_configs(images, chips, groups):
    stage = config.Stage(batch_size=32, model=config.Model(bn_groups=2))  # groups of 16
    found = program.at_batch(stage, images, chips)
    assert (found.batch_size, found.model.bn_groups) == (images * chips, groups)
    assert parallel.make_devices(min(chips, 8)).group_layout(groups).axis_name is None


def test_at_its_own_batch_a_stage_is_what_it_is_where_its_groups_fit_the_chips():
    stage = config.Stage(batch_size=24, model=config.Model(bn_groups=2))  # groups of 12
    for chips in (1, 2, 4):
        assert program.at_batch(stage, 24 // chips, chips) == stage
    assert program.at_batch(stage, 8, 3).model.bn_groups == 3


@pytest.mark.parametrize(("images", "reason"), [(1, "groups"), (17, "groups"), (32, "queue_size")])
def test_a_batch_without_groups_or_longer_than_the_queue_is_refused(images, reason):
    stage = config.Stage(
        batch_size=32, model=config.Model(bn_groups=2), moco=config.MoCo(queue_size=64)
    )
    with pytest.raises(UserError, match=reason):
        program.at_batch(stage, images, 4)


def test_hours_are_of_the_images_of_the_config_whatever_the_batch():
    plan = planned()
    stage = forecast.chosen_stage(plan.stages, "base")
    assert forecast.work_of(stage, plan.stages) == rows.Work(1000 * 32, 3.0, 2)
    row = dataclasses.replace(ROW, images_per_chip=320)
    assert row.hours(1000) == pytest.approx(ROW.hours(1000) / 10)


def test_the_first_stage_that_trains_is_taken_or_the_one_that_is_named():
    stages = planned().stages
    assert forecast.chosen_stage(stages, None).name == "base"
    assert forecast.chosen_stage(stages, "longer").name == "longer"
    for name, listed in (("given", stages), ("base", stages[2:])):
        with pytest.raises(UserError, match="that trains"):
            forecast.chosen_stage(listed, name)


def test_a_compiler_that_crashes_or_takes_too_long_is_a_row_and_the_next_is_made(
    tmp_path, monkeypatch, capsys
):
    # The process itself is real; what it runs is not libtpu, which does not crash when it is asked.
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    hang = "import time; time.sleep(600)"
    plan = planned()
    stage = forecast.chosen_stage(plan.stages, None)
    work = forecast.work_of(stage, plan.stages)
    path = tmp_path / "table.json"
    chips = {"v5e:2x2": 4}
    told = forecast.Forecast(stage, work, chips, rows.Table(path), 0.02, Display())
    for script, problem in (
        (crash, f"the compiler crashed ({signal.SIGSEGV.name})"),
        (hang, "not compiled within 0.02 minutes"),
        ("raise MemoryError('no more')", "the compiler gave up: MemoryError: no more"),
    ):
        monkeypatch.setattr(measure, "_COMMAND", (sys.executable, "-c", script))
        made = told.rows([8, 16], search=False)
        assert [row.problem for row in made] == [problem] * 2
        assert [one["problem"] for one in json.loads(path.read_text())["rows"]] == [problem] * 2
        assert problem in capsys.readouterr().out


def test_no_compiler_outlives_a_forecast_that_is_stopped(tmp_path):
    child = f"""
import os, time
open({str(tmp_path / "pid")!r}, "w").write(f"{{os.getpid()}} ")
time.sleep(600)
"""
    parent = f"""
import sys
from hpt_jax.forecast import __main__ as command, measure
measure._COMMAND = (sys.executable, "-c", {child!r})
command.forecast = lambda asked, overrides: measure.ask(None, minutes=10)
sys.exit(command.main(["--config", "any"]))
"""
    began = subprocess.Popen([sys.executable, "-c", parent])
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().endswith(" "):
        time.sleep(0.05)
    began.terminate()
    assert began.wait() == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# A compiler in the place of libtpu's: each image of a chip takes half a GiB, nothing else counts.
STUB = """
import json, pickle, sys
question = pickle.load(sys.stdin.buffer)
images = question.stage.batch_size // 4
answer = {"key": str(images)}
if answer["key"] not in question.known:
    names = ("hbm_bytes", "reduced_bytes", "gathered_bytes")
    answer |= dict.fromkeys(names, 1.0)
    answer |= {"flops": 1e12, "memory_bytes": images * 2.0**29, "compile_seconds": 1.0}
    print(images, file=open(sys.argv[1], "a"))
print(json.dumps(answer))
"""


@pytest.mark.parametrize(
    ("asked", "tried", "most"),
    [
        ([8], [8, 16, 32, 64], "32 images a chip (64 do not)"),
        ([8, 16], [8, 16, 32, 64], "32 images a chip (64 do not)"),
        ([16, 64], [16, 64, 32], "32 images a chip (64 do not)"),
        ([64], [64, 32], "32 images a chip (64 do not)"),
    ],
)
def test_the_largest_batch_is_looked_for_and_nothing_is_compiled_twice(
    asked, tried, most, tmp_path, monkeypatch, capsys
):
    log, path, plan = tmp_path / "log", tmp_path / "table.json", planned()
    monkeypatch.setattr(measure, "_COMMAND", (sys.executable, "-c", STUB, str(log)))
    stage = forecast.chosen_stage(plan.stages, None)
    work = forecast.work_of(stage, plan.stages)

    def told():
        made = forecast.Forecast(stage, work, {"v5e:2x2": 4}, rows.Table(path), 1, Display())
        return made.rows(asked, search=True)

    first = told()
    assert [row.images_per_chip for row in first] == tried
    assert f"v5e:2x2: the most that fits, of those compiled: {most}" in capsys.readouterr().out
    assert told() == first
    assert [int(line) for line in log.read_text().split()] == tried


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--topology", "v9:2x2"], "such as v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e:2x2, h100:8"),
        (["--topology", "cuda:1x1x4"], "h100:8"),
        (["--topology", "h100:1x8"], "a number of GPUs"),
        (["--topology", "h100:16"], "one host"),
        (["--topology", "v5e:2x2x1"], "--topology"),
        (["--topology", "v5p:2x2"], "--topology"),
        (["--topology", "v5e"], "--topology"),
        ([], "--topology"),
        (["--topology", "v5e:2x2", "--images_per_chip=0"], "--images_per_chip"),
        (["--topology", "v5e:2x2", "--images_per_chip=8,x"], "--images_per_chip"),
        (["--topology", "v5e:2x2", "--minutes=0"], "--minutes"),
        (["--topology", "v5e:2x2", "--frobnicate"], "--frobnicate"),
        (["--here", "--stage=nowhere"], "--stage"),
        (["--here", "--config.model.dtyp=x"], "config.model.dtyp"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(flags, field, capsys):
    assert command.main(["--config", "configs/hpt/resisc.py", *flags]) == 2
    assert field in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="needs an environment without it"
)
def test_without_libtpu_it_is_said_what_to_install(capsys):
    flags = ["--config", "configs/hpt/resisc.py", "--topology", "v5e:2x2"]
    assert command.main(flags) == 2
    assert "pip install 'hpt_jax[tpu]'" in capsys.readouterr().err


def test_steps_on_this_machine_say_what_bounds_them(capsys):
    fields = {"parallel.devices": 2, "model.width": 4, "image_size": 16, "batch_size": 16}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    assert command.main(["--config", "configs/quickstart.py", "--here", *flags]) == 0
    told = capsys.readouterr().out
    assert "here, 2 x cpu: base, float32, batch 16" in told
    assert "bound by compute (" in told or "bound by input (" in told


@pytest.mark.slow
@NEEDS_LIBTPU
def test_a_small_step_is_compiled_for_a_tpu_once(tmp_path):
    plan = planned()
    stage = forecast.chosen_stage(plan.stages, None)
    work = forecast.work_of(stage, plan.stages)
    path = tmp_path / "table.json"

    def row(name):
        stage = forecast.chosen_stage(plan.stages, name)
        chips = {"v5e:2x2": measure.chips_of("v5e:2x2")}
        told = forecast.Forecast(stage, work, chips, rows.Table(path), 20, Display())
        return told.rows([16], search=False)[0]

    first = row("base")
    assert not first.problem
    assert (first.chips, first.batch_size, first.bn_groups) == (4, 64, 4)
    model = training.make_model(stage.config.model, parallel.make_devices(1))
    carry = training.abstract_carry(moco, moco.make_settings(stage.config, model, 3), 3)
    trained = jax.tree.leaves((carry.state.backbone.params, carry.state.head))
    parameters = sum(4 * math.prod(leaf.shape) for leaf in trained)
    # Gradients, and the running statistics of both encoders.
    assert parameters < first.reduced_bytes < 1.1 * parameters
    assert first.gathered_bytes >= 64 * 8 * 4  # keys
    assert first.fits
    # The same program is not compiled again, by whatever name it is asked for.
    assert row("base") == first
    assert row("longer") == dataclasses.replace(first, stage="longer")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs the extra cuda"
)
def test_a_small_step_is_compiled_for_gpus_that_are_not_here(tmp_path):
    plan = planned()
    stage = forecast.chosen_stage(plan.stages, None)
    work = forecast.work_of(stage, plan.stages)
    chips = {name: measure.chips_of(name) for name in ("h100:2", "a100:2")}
    told = forecast.Forecast(stage, work, chips, rows.Table(tmp_path / "rows"), 20, Display())
    for row in told.rows([16], search=False):
        assert not row.problem
        assert (row.chips, row.batch_size, row.fits) == (2, 32, True)
        assert row.gathered_bytes == 32 * (8 + 2) * 4  # keys, and the slot and image of each
        assert row.reduced_bytes > 1e5


@pytest.mark.slow
@NEEDS_LIBTPU
def test_a_shape_that_libtpu_does_not_know_is_refused():
    with pytest.raises(UserError, match="compiler knows"):
        measure.chips_of("v5e:3x5")
