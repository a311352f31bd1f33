"""A study over several machines: `python -m hpt_jax.jobs --config FILE --workdir DIR`.

Its stages become jobs of whatever scheduler there is: commands to be given to one, or, through
submitit, job arrays of Slurm. What one job needs of another is in the workdir, which they share.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_jax import main as command_line
from hpt_jax import remote
from hpt_jax.errors import UserError

if TYPE_CHECKING:
    import submitit

    from hpt_jax import plan

HELP = """usage: python -m hpt_jax.jobs --config FILE --workdir DIR [--config.FIELD=VALUE ...]
           [--submit slurm --slurm.time=MINUTES [--slurm.NAME=VALUE ...] | --submit local]

Prints what is left of a study as commands, a wave after the other: those of one wave can run at
once, on any machines that share the workdir. The last command gathers results and makes the report.

  --submit slurm          gives each wave to Slurm as a job array that begins when the one before
                          has ended; logs are in DIR/jobs
  --slurm.NAME=VALUE      what a job asks for, as submitit's SlurmExecutor names it: time (in
                          minutes), partition, gpus_per_node, cpus_per_task, mem=64GB, account,
                          qos, array_parallelism (jobs at once), setup='["module load ..."]', ...;
                          nodes and ntasks_per_node: the processes of a job train together
  --submit local          runs them here, one at a time
  --help                  prints this

All else is as of python -m hpt_jax.main."""

SUBMIT = {"--submit": "slurm or local"}
_SLURM = "--slurm."
_MINUTES = 60 * 24 * 365  # that a job may take here
# Slurm's limits on time end no job for good: it goes on where it was.
_REQUEUES = 1000

Waves = list[list[tuple["plan.Stage", ...]]]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    try:
        flags, overrides = command_line.parse(arguments, {**SUBMIT, **command_line.WAIT}, (_SLURM,))
        return _run(flags, overrides)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _run(flags: Mapping[str, str], overrides: Sequence[tuple[str, str]]) -> int:
    engine = flags.get("--submit")
    if engine not in (None, "slurm", "local"):
        raise UserError("--submit", engine, "slurm or local", "Without it commands are printed.")
    settings = {
        name.removeprefix(_SLURM): value for name, value in flags.items() if name.startswith(_SLURM)
    }
    if settings and engine != "slurm":
        first = next(iter(settings))
        raise UserError(f"{_SLURM}{first}", None, "--submit slurm beside it", "Add it.")
    if remote.is_address(flags["--workdir"]):
        expected = "a folder that the jobs share; at an address one run works at a time"
        fix = "Choose one on a file system that all machines have."
        raise UserError("--workdir", flags["--workdir"], expected, fix)
    root = Path(flags["--workdir"]).absolute()
    commands = [
        [command(flags, overrides, job) for job in jobs]
        for jobs in waves_left(flags["--config"], overrides, root)
    ]
    commands.append([command(flags, overrides)])
    if engine == "slurm":
        return submit(_slurm(root, settings), commands)
    if engine == "local":
        return run_here(_local(root), commands)
    print("\n".join(script(commands)))
    return 0


def waves_left(config_path: str, overrides: Sequence[tuple[str, str]], root: Path) -> Waves:
    """The jobs of a study that are not done yet; see `waves`.

    Args:
      config_path: the config file.
      overrides: (dotted field, text) pairs.
      root: the workdir.

    Raises:
      UserError: for a mistake in the config; data or weights are not there.
    """
    # Imported here, so that --help and a wrong flag are answered at once.
    from rich.console import Console

    from hpt_jax import config, handover, plan, run, workdir
    from hpt_jax.telemetry.display import Display

    workdir.check_root(root)
    display = Display(Console(stderr=True, highlight=False))
    asked = run.make_plan(config.load(config_path), overrides, display, root)
    ends = {one.stage.id for one in asked.runs}

    def is_left(stage: plan.Stage) -> bool:
        if stage.id.endswith(plan.UNKNOWN):
            absent = "dataset" if stage.fingerprint == plan.UNKNOWN else "init"
            field, value = f"stages.{stage.name}.{absent}", getattr(stage.config, absent)
            expected = "what is there, since it is part of the names of stages"
            raise UserError(field, value, expected, "Check the path.")
        if not workdir.stage_folder(root, stage.id).is_done:
            return True
        return stage.id in ends and bool(handover.missing(stage, asked, root))

    return waves(asked, is_left)


def waves(asked: plan.Plan, is_left: Callable[[plan.Stage], bool]) -> Waves:
    """The stages of a plan as jobs, those that can run at once in one wave.

    Stages of one trunk are one job, since the longer go on from the shorter. One that takes no
    steps and is not evaluated is left to the jobs of those after it: alone it would wait for a
    machine for longer than it takes.

    Args:
      asked: the plan.
      is_left: whether a stage, or one of its evaluations, is to be done.

    Returns:
      Waves of jobs of stages. All that a stage starts from is in earlier waves, or takes no steps.
    """
    ends = {run.stage.id for run in asked.runs}
    found: dict[int, dict[str, list[plan.Stage]]] = {}
    for stage in asked.stages:
        if is_left(stage) and (stage.trains or stage.id in ends):
            wave = found.setdefault(sum(one.trains for one in stage.chain[:-1]), {})
            wave.setdefault(stage.trunk or stage.id, []).append(stage)
    return [[tuple(job) for job in found[depth].values()] for depth in sorted(found)]


def command(
    flags: Mapping[str, str],
    overrides: Sequence[tuple[str, str]],
    only: Sequence[plan.Stage] = (),
) -> list[str]:
    """The command that does some stages; without any, all that is left and the report."""
    quiet = command_line.QUIET[0]
    return [
        *(sys.executable, "-m", "hpt_jax.main"),
        *("--config", flags["--config"], "--workdir", flags["--workdir"]),
        *(f"--config.{field}={value}" for field, value in overrides),
        *((quiet,) if quiet in flags else ()),
        *(f"{flag}={flags[flag]}" for flag in command_line.WAIT if flag in flags),
        *((f"--only={','.join(stage.id for stage in only)}",) if only else ()),
    ]


def script(work: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    """The lines of a shell script, a command each, that does one after the other.

    Args:
      work: waves of commands; the last one is of the command that ends it all.
    """
    *before, last = work
    lines = []
    for index, commands in enumerate(before):
        when = f"when those of wave {index} have ended" if index else "now"
        lines.append(f"# wave {index + 1} of {len(before)}: {when}, in any order or at once")
        lines += map(shlex.join, commands)
    return [*lines, "# when all have ended: results and report", *map(shlex.join, last)]


def _slurm(root: Path, settings: Mapping[str, str]) -> submitit.Executor:
    """What jobs are submitted with.

    Args:
      root: the workdir.
      settings: submitit's name -> text.

    Raises:
      UserError: there is no Slurm, a setting is missing or wrong.
    """
    import submitit

    absent = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if absent:
        expected = f"a machine with Slurm's {' and '.join(absent)}"
        fix = "Call it on a login node; or without --submit, to get the commands."
        raise UserError("--submit", "slurm", expected, fix)
    values = {name: _value(text) for name, text in settings.items()}
    if not isinstance(values.get("time"), int):  # submitit's default is 5 minutes
        fix = f"Write {_SLURM}time=MINUTES."
        raise UserError(f"{_SLURM}time", values.get("time"), "minutes that a job may take", fix)
    executor = submitit.SlurmExecutor(_logs(root), max_num_timeout=_REQUEUES)
    try:
        executor.update_parameters(**{"job_name": "hpt_jax", **values})
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]  # further ones list all that there are
        expected = f"settings of submitit's SlurmExecutor, but: {reason}"
        fix = "Its documentation lists them; sbatch's, what they mean."
        raise UserError(f"{_SLURM}*", dict(settings), expected, fix) from None
    return executor


def _local(root: Path) -> submitit.Executor:
    """The same, for jobs on this machine."""
    import submitit

    executor = submitit.LocalExecutor(_logs(root))
    executor.update_parameters(timeout_min=_MINUTES)
    return executor


def _logs(root: Path) -> Path:
    """A new folder for jobs: submitit opens pickles by a job's number, which may come again."""
    folder = root / "jobs"
    before = len(os.listdir(folder)) if folder.is_dir() else 0
    return folder / f"{before + 1:03}-{uuid.uuid4().hex[:8]}"


def _value(text: str) -> Any:
    """A setting's text as the number, truth value, list or dict that it is, or as text."""
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
        if isinstance(value, (int, list, dict)):
            return value
    return text


class Job:
    """What a scheduler runs: a command that can be stopped, and goes on when it is called again.

    Args:
      command: a program and its arguments.
    """

    def __init__(self, command: Sequence[str]):
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Runs the command to its end.

        Raises:
          subprocess.CalledProcessError: it has failed, or was stopped.
        """

        def ignore() -> None:
            # The scheduler's warning is for this process, which passes it on by SIGTERM.
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

        self._process = subprocess.Popen(self._command, preexec_fn=ignore)
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())
        if code := self._process.wait():
            raise subprocess.CalledProcessError(code, self._command)

    def _stop(self) -> None:
        """Makes the command save and end."""
        if self._process is not None:
            self._process.terminate()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What to run instead when time is up, as submitit asks: the same again."""
        import submitit

        self._stop()
        if self._process is not None:
            # Its `wait` is what the scheduler's signal has interrupted, and cannot be called twice.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self._command))


def submit(executor: submitit.Executor, work: Sequence[Sequence[Sequence[str]]]) -> int:
    """Gives Slurm each wave of commands as a job array, after the one before; the exit code.

    A wave begins when the one before has ended, well or not: what a job lacks it makes itself.
    """
    before = None
    for index, commands in enumerate(work):
        executor.update_parameters(dependency=f"afterany:{before}" if before else None)
        with executor.batch():
            jobs = [executor.submit(Job(command)) for command in commands]
        before = jobs[0].job_id.partition("_")[0]
        name = f"wave {index + 1}" if index + 1 < len(work) else "results and report"
        count = f"{len(jobs)} job{'s' if len(jobs) > 1 else ''}"
        print(f"{name}: {count}, {before}")
    print(f"logs: {executor.folder}")
    return 0


def run_here(executor: submitit.Executor, work: Sequence[Sequence[Sequence[str]]]) -> int:
    """Runs waves of commands on this machine, one command at a time; the exit code."""
    failed = False
    for commands in work:
        for each in commands:
            job = executor.submit(Job([*_with_devices(), *each]))
            print(f"{job.job_id}: {shlex.join(each)}", flush=True)
            failed = job.exception() is not None
            if failed:
                print(f"failed: see {job.paths.stderr} and {job.paths.stdout}", file=sys.stderr)
    return int(failed)  # the last command, which does what any other has left


def _with_devices() -> tuple[str, ...]:
    """Lets a command see the GPUs that this process sees: submitit hides those not asked for."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ("env", "-u", "CUDA_VISIBLE_DEVICES")
    return ("env", f"CUDA_VISIBLE_DEVICES={visible}")


if __name__ == "__main__":
    from hpt_jax import jobs  # by its own name, under which a job finds it again

    sys.exit(jobs.main(sys.argv[1:]))
