"""metrics.csv is exact under resume; progress is readable without a terminal."""

import io
import math
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import hpt_jax
from hpt_jax.errors import UserError
from hpt_jax.telemetry.display import Display
from hpt_jax.telemetry.writers import MetricsWriter, read_metrics, write_parameter_overview


def write(path, start, steps):
    writer = MetricsWriter(path, start)
    for step in steps:
        writer.write(step, {"loss": step / 3, "accuracy": jnp.float32(0.25)})
    writer.close()


def steps(path):
    return [int(row["step"]) for row in read_metrics(path)]


def test_rows_come_back_as_the_numbers_that_were_written(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, 0, [10, 20])
    assert path.read_text().splitlines()[0] == "step,loss,accuracy"
    rows = read_metrics(path)
    assert [float(row["loss"]) for row in rows] == [10 / 3, 20 / 3]
    assert [float(row["accuracy"]) for row in rows] == [0.25, 0.25]


def test_a_resumed_run_writes_what_an_uninterrupted_one_does(tmp_path):
    write(tmp_path / "whole.csv", 0, [10, 20, 30, 40])
    path = tmp_path / "metrics.csv"
    write(path, 0, [10, 20, 30])  # killed, with the last save at 20
    write(path, 20, [30, 40])
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_resume_with_a_column_more_or_less_keeps_the_files_columns(tmp_path):
    path = tmp_path / "measures.csv"
    for first, then in (({"rankme": 2.0}, {"knn": 0.5}), ({"rankme": 2.0, "knn": 0.5}, {})):
        for start, row in ((0, first), (10, {"rankme": 3.0, **then})):
            writer = MetricsWriter(path, start)
            writer.write(start + 10, row)
            writer.close()
        rows = read_metrics(path)
        assert [list(row)[1:] for row in rows] == [list(first)] * 2
        assert [float(row["rankme"]) for row in rows] == [2.0, 3.0]
    assert math.isnan(rows[1]["knn"])


def test_a_resume_at_the_start_drops_every_row(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, 0, [10, 20])
    write(path, 0, [])
    assert steps(path) == []
    write(path, 0, [10])
    assert steps(path) == [10]


def test_a_file_cut_anywhere_gives_its_whole_rows(tmp_path):
    write(tmp_path / "whole.csv", 0, [10, 20, 30])
    whole = (tmp_path / "whole.csv").read_bytes()
    path = tmp_path / "metrics.csv"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        rows = max(0, whole[:cut].count(b"\n") - 1)
        assert steps(path) == [10, 20, 30][:rows], cut
    path.write_bytes(whole[:-5])
    write(path, 20, [30])
    assert path.read_bytes() == whole


def test_each_row_is_on_disk_when_it_is_written(tmp_path):
    path = tmp_path / "metrics.csv"
    writer = MetricsWriter(path, 0)
    for step in (10, 20):
        writer.write(step, {"loss": 1.0})
        assert steps(path)[-1] == step
    writer.close()


def test_an_absent_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "absent.csv") == []


def test_tensorboard_gets_the_same_numbers_also_after_a_resume(tmp_path):
    write(tmp_path / "metrics.csv", 0, [10, 20])
    write(tmp_path / "metrics.csv", 20, [30])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name, values in [("loss", [10 / 3, 20 / 3, 10.0]), ("accuracy", [0.25, 0.25, 0.25])]:
        found = events.Tensors(name)
        assert [event.step for event in found] == [10, 20, 30]
        numbers = [float(make_ndarray(event.tensor_proto)) for event in found]
        np.testing.assert_allclose(numbers, values, rtol=1e-6)
    plugin = events.SummaryMetadata("loss").plugin_data.plugin_name
    assert plugin == "scalars", "which is what draws curves"


def event_steps(folder, name="loss"):
    """The steps of a curve, as TensorBoard's server reads them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return [event.step for event in events.Tensors(name)]


def test_tensorboard_shows_what_a_kill_voided_once_and_in_order(tmp_path):
    write(tmp_path / "metrics.csv", 0, [10, 20, 30])
    write(tmp_path / "metrics.csv", 10, [20, 30, 40])
    assert event_steps(tmp_path) == [10, 20, 30, 40]


def test_pictures_and_measures_come_back_from_tensorboards_own_reader(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    metrics = MetricsWriter(tmp_path / "metrics.csv", 0)
    measures = MetricsWriter(tmp_path / "measures.csv", 0, metrics.events, "measures/")
    metrics.events.write_image(0, "augmented views", pixels)
    for step in (0, 10, 20):
        measures.write(step, {"rankme": float(step)})
        metrics.write(step + 1, {"loss": 1.0})
    measures.close()
    metrics.close()
    assert len(list(tmp_path.glob("events*"))) == 1
    assert (tmp_path / "measures.csv").read_text().splitlines()[0] == "step,rankme"
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Tensors("measures/rankme")] == [0, 10, 20]
    assert [event.step for event in events.Tensors("loss")] == [1, 11, 21]
    assert events.SummaryMetadata("augmented views").plugin_data.plugin_name == "images"
    (event,) = events.Tensors("augmented views")
    width, height, coded = make_ndarray(event.tensor_proto)
    assert (event.step, width, height) == (0, b"5", b"7")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(coded))), pixels)


def test_a_writer_that_was_given_nothing_makes_no_event_file(tmp_path):
    MetricsWriter(tmp_path / "metrics.csv", 0).close()
    assert list(tmp_path.iterdir()) == []


def test_a_new_event_file_comes_after_those_that_others_named_by_the_time(tmp_path):
    for step in range(10, 130, 10):
        write(tmp_path / "metrics.csv", step - 10, [step])
        if step == 30:
            (last,) = sorted(tmp_path.glob("events*"))[-1:]
            last.rename(last.with_name("events.out.tfevents.1893456000000000000.a.b-1.c.2"))
    assert event_steps(tmp_path) == list(range(10, 130, 10))
    names = sorted(path.name for path in tmp_path.glob("events*"))
    assert names[2].startswith("events.out.tfevents.1893456000000000000.")
    assert names[3].startswith("events.out.tfevents.1893456000000000001.")


@pytest.mark.parametrize(
    "text", ["step,loss\nx,1\n", "step,loss\n1\n", "loss\n1\n", "step,loss\n1,y\n2,2\n", "\n1,2\n"]
)
def test_metrics_that_are_no_rows_of_numbers_are_refused(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv: expected rows of numbers.*Delete it"):
        MetricsWriter(tmp_path / "metrics.csv", 1)
    assert (tmp_path / "metrics.csv").read_text() == text


def test_only_labels_are_the_wall_clocks():
    """TensorBoard wants to know when, a running page and a lease say it; else no clock counts.

    A service may tell the versions of a file by its time there.
    """
    package = Path(hpt_jax.__file__).parent
    wall = re.compile(
        r"\btime\.(?:time|time_ns|ctime|localtime|gmtime|strftime)\(|datetime|mtime\b"
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if wall.search(line)
    ]
    assert len(found) == 4, found
    live, lease, version, writer = sorted(found)
    assert live == 'live.py: return time.strftime("%Y-%m-%d %H:%M:%S")'
    assert lease == 'mirror.py: since = time.strftime("%Y-%m-%d %H:%M:%S %z")'
    assert version.startswith("remote.py: keys = (")
    assert writer.startswith("writers.py: self._records.write(self._event(wall_time=time.time()")


def test_the_parameter_overview_counts_every_parameter(tmp_path):
    params = {"conv": {"kernel": jnp.zeros((3, 3, 1, 4))}, "bn": {"bias": jnp.zeros(4)}}
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    write_parameter_overview(params, tmp_path / "parameters.txt")
    text = (tmp_path / "parameters.txt").read_text()
    assert "conv/kernel" in text
    assert f"Total: {total}" in text


# The terminal


def make_display(terminal):
    out = io.StringIO()
    return Display(Console(file=out, force_terminal=terminal, width=80, highlight=False)), out


def test_lines_are_printed_whole_and_as_they_are():
    display, out = make_display(False)
    text = "[bold]x[/bold] " + "long " * 40
    display.line(text)
    assert out.getvalue() == text + "\n"


def test_a_name_that_is_not_utf8_is_printed_escaped():
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    name = os.fsdecode(b"\xff\xfe caf\xc3\xa9.png")
    Display(Console(file=out, width=80, highlight=False)).line(f"skipped {name}")
    out.flush()
    assert out.buffer.getvalue() == "skipped \\xff\\xfe café.png\n".encode()


def screen(written):
    """The lines that a terminal shows after it was written to, as far as progress bars go."""
    rows, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            rows[row] = ""
        elif part[0] not in "\x1b\r":
            rows[row] += part
    return [one.rstrip() for one in rows if one.strip()]


class Timers:
    """A clock that stands still, and timers that run out when it is moved."""

    def __init__(self):
        self.now, self.waiting = 0.0, []

    def __call__(self, seconds, then):
        clock, due = self, self.now + seconds

        class Timer:
            def start(self):
                clock.waiting.append((due, self, then))

            def cancel(self):
                clock.waiting = [one for one in clock.waiting if one[1] is not self]

        return Timer()

    def pass_(self, seconds):
        self.now += seconds
        due = [one for one in self.waiting if one[0] <= self.now]
        self.waiting = [one for one in self.waiting if one not in due]
        for _, _, then in due:
            then()


def make_timed(terminal, quiet=False):
    out, clock = io.StringIO(), Timers()
    console = Console(file=out, force_terminal=terminal, width=80, highlight=False)
    return Display(console, quiet, lambda: clock.now, clock), out, clock


@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_never_reach_the_terminal(terminal):
    display, out, clock = make_timed(terminal)
    name = "a\x1b[2J\x9b2J\x07\r\u202e\ud800"
    display.line(f"{name}\nnext")
    with display.progress(name, 100) as update, display.working(name):
        clock.pass_(5)
        update(100, "")
    text = out.getvalue()
    assert "a\\x1b[2J\\x9b2J\\x07\\r\\u202e\\ud800\\nnext\n" in text
    assert not {"\x9b", "\x07", "\u202e", "\ud800"} & set(text)
    assert "\x1b[2J" not in text


def test_without_a_terminal_progress_is_a_line_now_and_then():
    display, out, clock = make_timed(False)
    with display.progress("t-1", 100, start=20) as update:
        for done in range(21, 61):
            clock.pass_(1.0)
            update(done, "loss 1.5")
    lines = out.getvalue().splitlines()
    assert lines == [
        "t-1: 36/100  1.0/s  64 s left  loss 1.5",
        "t-1: 51/100  1.0/s  49 s left  loss 1.5",
    ]
    assert "\x1b" not in out.getvalue()


def test_steps_slower_than_one_a_second_are_told_by_their_seconds():
    display, out, clock = make_timed(False)
    with display.progress("t-1", 100) as update:
        for done in range(1, 3):
            clock.pass_(30.0)
            update(done, "loss 1.5")
    assert "t-1: 2/100  30.0 s each  2940 s left  loss 1.5\n" in out.getvalue()


def test_on_a_terminal_progress_is_a_bar():
    display, out, clock = make_timed(True)
    with display.progress("t-1", 100, start=20) as update:
        clock.pass_(3)
        update(60, "loss 1.5")
        display._bars.refresh()
    assert "t-1" in out.getvalue()
    assert "60/100" in out.getvalue()
    assert "loss 1.5" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_done_within_two_seconds_shows_nothing(terminal):
    display, out, clock = make_timed(terminal)
    for _ in range(3):
        with display.working("a"), display.progress("b", 10) as update:
            clock.pass_(1.9)
            update(10, "")
    clock.pass_(100)
    assert out.getvalue() == ""


def test_longer_work_is_told_with_its_time_on_a_terminal_and_in_one_line_elsewhere():
    display, out, clock = make_timed(True)
    with display.working("compiling"):
        clock.pass_(2.5)
        clock.pass_(62.5)
        display._bars.refresh()
    assert "0:00:02" in out.getvalue()
    assert "0:01:05" in out.getvalue()
    display, out, clock = make_timed(False)
    with display.working("compiling"):
        for _ in range(9):
            clock.pass_(2.5)
    assert out.getvalue() == "compiling ...\n"


def test_the_first_step_is_compiling_and_no_bar_at_zero():
    display, out, clock = make_timed(True)
    with display.progress("t-1", 100, first="compiling") as update:
        clock.pass_(30)
        assert "t-1: compiling" in out.getvalue()
        assert "0/100" not in out.getvalue()
        update(1, "")
        for done in (11, 21):
            clock.pass_(10)
            update(done, "")
        display._bars.refresh()
        (shown,) = screen(out.getvalue())
        assert shown.endswith("21/100 1.0/s 0:01:19"), "the time of compiling counts for nothing"
        assert "compiling" not in shown
    display, out, clock = make_timed(False)
    with display.progress("t-1", 100, first="compiling") as update:
        clock.pass_(30)
        update(1, "")
    assert out.getvalue() == "t-1: compiling ...\n"


def test_lines_leave_bars_whole_and_nothing_of_the_bars_is_left_in_the_end():
    display, out, clock = make_timed(True)
    display.line("one")
    with display.working("outer"):
        clock.pass_(3)
        with display.progress("inner", 10) as update:
            clock.pass_(3)
            update(4, "")
            display._bars.refresh()
            display.line("two")
            shown = screen(out.getvalue())
            assert shown[:2] == ["one", "two"]
            assert [one.split()[0] for one in shown[2:]] == ["outer", "inner"]
            assert "4/10" in shown[3]
        display.line("three")
    with display.working("again"):
        clock.pass_(3)
    display.line("four")
    assert screen(out.getvalue()) == ["one", "two", "three", "four"]


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_is_warnings_and_outcomes_alone(terminal):
    display, out, clock = make_timed(terminal, quiet=True)
    display.line("reading")
    display.line("note: odd")
    with display.working("a"), display.progress("b", 10, first="c") as update:
        clock.pass_(100)
        update(5, "")
        clock.pass_(100)
        update(6, "")
    display.line("alarm: collapsed")
    display.outcome("results: x.csv")
    assert out.getvalue().splitlines() == ["note: odd", "alarm: collapsed", "results: x.csv"]
