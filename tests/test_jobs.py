"""A study as jobs: what is in which, in what order, and how schedulers are asked to run them."""

import dataclasses
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_files import DONE, LINEAGE
from test_studies import planned

from hpt_jax import jobs, plan
from hpt_jax.config import ANALYSES, Config, Optimizer, Stage
from hpt_jax.main import parse
from hpt_jax.workdir import stage_folder, write_json


def waves(asked, left=lambda stage: True):
    return jobs.waves(asked, left)


def ids(found):
    return [[[stage.name for stage in job] for job in wave] for wave in found]


def make_plan(stages, arms, **more):
    config = Config(stages=stages, arms=arms, evaluations=("knn",), target="folder:t", **more)
    return plan.make_plan(config, lambda name: name, lambda path: path)


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_every_stage_of_a_study_is_in_one_job_and_its_parents_before_it(analysis, scale):
    asked = planned(analysis, f"scale={scale}")
    found = waves(asked)
    wave_of = {}
    for index, wave in enumerate(found):
        for job in wave:
            for stage in job:
                assert stage.id not in wave_of
                wave_of[stage.id] = index
    ends = {one.stage.id for one in asked.runs}
    assert set(wave_of) == {one.id for one in asked.stages if one.trains or one.id in ends}
    for stage in asked.stages:
        for parent in stage.chain[:-1]:
            if stage.id in wave_of and parent.trains:
                assert wave_of[parent.id] < wave_of[stage.id]


def test_stages_that_start_from_nothing_begin_at_once_and_others_when_their_parent_is_done():
    stages = {
        "base": Stage(dataset="folder:b", steps=(2,)),
        "source": Stage(dataset="folder:s", steps=(2,)),
        "target": Stage(dataset="folder:t", steps=(2,)),
    }
    arms = {"B+S+T": ("base", "source", "target"), "S+T": ("source", "target"), "T": ("target",)}
    assert ids(waves(make_plan(stages, arms))) == [
        [["base"], ["source"], ["target"]],
        [["source"], ["target"]],
        [["target"]],
    ]


def test_a_file_of_weights_is_no_job_but_where_it_is_evaluated():
    stages = {
        "base": Stage(init="file", trainable="nothing"),
        "target": Stage(dataset="folder:t", steps=(2,)),
    }
    asked = make_plan(stages, {"B+T": ("base", "target")})
    assert ids(waves(asked)) == [[["target"]]]
    asked = make_plan(stages, {"B": ("base",), "B+T": ("base", "target")})
    assert ids(waves(asked)) == [[["base"], ["target"]]]


def test_budgets_of_one_trunk_are_one_job_the_shorter_first():
    optimizer = Optimizer(schedule="anytime")
    stages = {
        "target": Stage(dataset="folder:t", steps=(30, 10, 20), optimizer=optimizer),
        "cosine": Stage(dataset="folder:t", steps=(20, 10)),
    }
    asked = make_plan(stages, {"T": ("target",), "C": ("cosine",)}, seeds=(0, 1))
    steps = [[[stage.steps for stage in job] for job in wave] for wave in waves(asked)]
    assert steps == [[[10, 20, 30], [10, 20, 30], [10], [20], [10], [20]]]


def test_what_is_done_is_no_job():
    stages = {
        "base": Stage(dataset="folder:b", steps=(2,)),
        "target": Stage(dataset="folder:t", steps=(2,)),
    }
    asked = make_plan(stages, {"B+T": ("base", "target"), "T": ("target",)})
    assert ids(waves(asked, lambda stage: stage.name != "base")) == [[["target"]], [["target"]]]
    assert waves(asked, lambda stage: False) == []


def test_the_part_of_a_plan_has_all_that_its_stages_start_from():
    stages = {
        "base": Stage(dataset="folder:b", steps=(2,)),
        "target": Stage(dataset="folder:t", steps=(2,)),
    }
    asked = make_plan(stages, {"B": ("base",), "B+T": ("base", "target"), "T": ("target",)})
    base, target, alone = asked.stages
    part = plan.part(asked, [target.id])
    assert part.stages == (base, target)
    assert [run.arm for run in part.runs] == ["B+T"]
    assert dataclasses.replace(part, stages=asked.stages, runs=asked.runs) == asked
    part = plan.part(asked, [alone.id, base.id])
    assert part.stages == (base, alone)
    assert [run.arm for run in part.runs] == ["B", "T"]


CONFIG = """
from hpt_jax.config import default_config

def get_config():
    config = default_config()
    config.data_dir = {data!r}
    config.target = "folder:target"
    config.stages.base = dict(dataset="folder:base", steps=2)
    config.stages.target = dict(dataset="folder:target", steps=2)
    config.arms.update({{"B+T": ("base", "target"), "T": ("target",)}})
    config.evaluations = ("knn",)
    return config
"""


@pytest.fixture
def study(tmp_path):
    """Flags of a study of three stages; nothing reads its images."""
    for place in ("base/a/1.png", "base/b/2.png", "target/a/1.png", "target/b/2.png"):
        path = tmp_path / "data" / place
        path.parent.mkdir(parents=True)
        path.write_bytes(place.encode())
    (tmp_path / "c.py").write_text(CONFIG.format(data=str(tmp_path / "data")))
    return ["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w")]


def commands(text):
    """The commands of a script, each as its arguments, wave by wave."""
    parts = re.split(r"^#.*\n", text, flags=re.MULTILINE)[1:]
    return [[shlex.split(line) for line in part.splitlines()] for part in parts]


def only(command):
    """The names of the stages that a command does."""
    flags, _ = parse(command[3:])
    return [one.partition("-")[0] for one in flags.get("--only", "").split(",")]


def test_commands_are_printed_that_a_shell_can_run(study, tmp_path, capsys):
    spaced = ["--config.domain=my field", "--quiet", "--wait_minutes=5"]
    assert jobs.main([*study, *spaced]) == 0
    told = commands(capsys.readouterr().out)
    assert [[only(command) for command in wave] for wave in told] == [
        [["base"], ["target"]],
        [["target"]],
        [[""]],
    ]
    expected, overrides = parse([*study, *spaced])
    for command in (command for wave in told for command in wave):
        assert command[:3] == [sys.executable, "-m", "hpt_jax.main"]
        flags, more = parse(command[3:])
        assert {name: flags[name] for name in expected} == expected
        assert more == overrides


def test_what_is_done_is_left_out_and_the_end_is_not(study, tmp_path, capsys):
    jobs.main(study)
    first, *_ = commands(capsys.readouterr().out)
    base = parse(first[0][3:])[0]["--only"]
    folder = stage_folder(tmp_path / "w", base)
    write_json(folder.lineage, LINEAGE)
    write_json(folder.done, DONE)
    jobs.main(study)
    told = commands(capsys.readouterr().out)
    assert [[only(command) for command in wave] for wave in told] == [
        [["target"]],
        [["target"]],
        [[""]],
    ]


def refused(capsys, *flags):
    """The one line that a command which must be refused says."""
    assert jobs.main(list(flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_are_named(study, tmp_path, capsys, monkeypatch):
    assert "slurm or local" in refused(capsys, *study, "--submit=pbs")
    assert "--submit slurm" in refused(capsys, *study, "--slurm.time=9")
    assert "'--submit'" in refused(capsys, *study, "--sumbit=slurm")
    assert refused(capsys, *study, "--config.arms.T=nix").startswith("arms.T")
    assert "that the jobs share" in refused(capsys, *study, "--workdir=s3://bucket/run")
    (tmp_path / "data").rename(tmp_path / "moved")
    assert refused(capsys, *study).startswith("stages.base.dataset = 'folder:base'")
    assert not (tmp_path / "w").exists()


SBATCH = """#!/bin/sh
count=$(ls {folder} | wc -l)
cp "$1" {folder}/$count
echo "Submitted batch job $((100 + count))"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder that takes what is submitted to a Slurm that only numbers it."""
    folder, programs = tmp_path / "submitted", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, text in {"sbatch": SBATCH.format(folder=folder), "srun": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return folder


def submit(*flags):
    """The command as a process: submitit, once imported, closes what pytest writes to."""
    command = [sys.executable, "-m", "hpt_jax.jobs", *flags, "--submit=slurm"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_slurm_gets_an_array_a_wave_after_the_one_before(study, slurm):
    asked = ["--slurm.time=600", "--slurm.partition=gpu", "--slurm.gpus_per_node=2"]
    done = submit(*study, *asked, "--slurm.mem=8GB", "--slurm.array_parallelism=1")
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[:2] == ["wave 1: 2 jobs, 100", "wave 2: 1 job, 101"]
    assert told[2] == "results and report: 1 job, 102"
    submitted = [
        dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", path.read_text(), re.MULTILINE))
        for path in sorted(slurm.iterdir())
    ]
    assert [one.get("array") for one in submitted] == ["0-1%1", None, None]
    after = [one.get("dependency") for one in submitted]
    assert after == [None, "afterany:100", "afterany:101"]
    for one in submitted:
        settings = {name: one[name] for name in ("time", "partition", "gpus-per-node", "mem")}
        assert settings == {"time": "600", "partition": "gpu", "gpus-per-node": "2", "mem": "8GB"}


def test_slurms_settings_are_checked_before_anything_is_submitted(study, slurm, monkeypatch):
    asked = (["time=1-00:00:00"], ["time=9", "patition=gpu"])
    done = [submit(*study, *(f"--slurm.{one}" for one in flags)) for flags in asked]
    monkeypatch.setenv("PATH", str(slurm))  # where there is no Slurm
    done.append(submit(*study, "--slurm.time=9"))
    assert [one.returncode for one in done] == [2, 2, 2]
    told = [one.stderr.splitlines() for one in done]
    assert [len(lines) for lines in told] == [1, 1, 1]
    assert told[0][0].startswith("--slurm.time = '1-00:00:00': expected minutes")
    assert "['patition']" in told[1][0]
    assert "sbatch and srun" in told[2][0]
    assert list(slurm.iterdir()) == []


SAVES = """
import pathlib, signal, sys, time

def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).write_text("runs")
while True:
    time.sleep(1)
"""

# As submitit does it: a signal's handler asks for the job to be run instead.
RUNS = """
import signal, sys
from hpt_jax.jobs import Job

job = Job([sys.executable, "-c", sys.argv[1], sys.argv[2]])

def warned(number, frame):
    again = job.checkpoint().function
    print("again", again._command == job._command, open(sys.argv[2]).read(), flush=True)
    sys.exit(3)

signal.signal(signal.SIGUSR2, warned)
job()
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGUSR2, 3, "again True saved\n"), (signal.SIGTERM, 1, "")],
)
def test_a_job_that_is_to_end_saves_and_can_be_run_again(tmp_path, number, code, said):
    path = Path(tmp_path / "told")
    with subprocess.Popen(
        [sys.executable, "-c", RUNS, SAVES, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (path.is_file() and path.read_text() == "runs"):
            time.sleep(0.01)
        process.send_signal(number)
        told, failed = process.communicate(timeout=60)
    assert path.read_text() == "saved"
    assert (process.returncode, told) == (code, said)
    assert ("CalledProcessError" in failed) == (number == signal.SIGTERM)


def test_a_job_that_fails_says_so():
    with pytest.raises(subprocess.CalledProcessError, match="status 2"):
        jobs.Job([sys.executable, "-c", "raise SystemExit(2)"])()


def test_help_needs_nothing_else():
    program = (
        "import sys; from hpt_jax.jobs import main; code = main(['--help']); "
        "print(code, sorted({'jax', 'numpy', 'submitit', 'ml_collections'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"
