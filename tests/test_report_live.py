"""The page of a run that goes on: there at once, seldom enough, and in the end as always."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from health_files import write_health
from rich.console import Console
from test_report_health import read, write_unlabelled
from test_report_page import Checked

from hpt_jax import plan
from hpt_jax.config import Stage
from hpt_jax.report import figures, live, page, results
from hpt_jax.telemetry.display import Display


class Clock:
    """Stands still, but for `took` seconds at each page."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, took: float):
        self.now, self.pages = 0.0, 0
        write = page.write

        def slow(*args: object, **kwargs: object) -> Path:
            self.now += took
            self.pages += 1
            return write(*args, **kwargs)

        monkeypatch.setattr(page, "write", slow)

    def __call__(self) -> float:
        return self.now


def stage_of(folder: Path, steps: int = 100) -> plan.Stage:
    config = Stage(dataset="x", steps=steps)
    return plan.Stage("target", folder.name, config, 0, None, "f", "random")


def index(root: Path) -> str:
    return (root / "report" / "index.html").read_text()


@pytest.mark.parametrize(("took", "share"), [(0.5, 0.01), (0.01, 0.001)])
def test_no_more_than_a_hundredth_of_the_time_goes_into_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, share: float
) -> None:
    monkeypatch.setattr(page, "write", lambda *args, **kwargs: tmp_path)
    folder, clock = tmp_path / "target-1", Clock(monkeypatch, took)
    one = live.Live(tmp_path, "digits", Display(quiet=True), clock)
    one.refresh(stage_of(folder))
    began = clock.now
    for _ in range(400):
        clock.now += 0.5
        one.refresh(stage_of(folder))
    assert clock.pages > 1
    assert (clock.pages - 1) * took <= share * (clock.now - began) + took


def test_the_page_is_there_before_the_first_step_and_its_path_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clock, out = write_unlabelled(tmp_path), Clock(monkeypatch, 0.0), io.StringIO()
    for name in ("metrics.csv", "measures.csv", "health.json", "done.json"):
        (folder / name).unlink()
    one = live.Live(tmp_path, "digits", Display(Console(file=out, width=80)), clock)
    for _ in range(2):
        one.refresh(stage_of(folder))
        clock.now += 60
    assert clock.pages == 2
    (told,) = out.getvalue().splitlines()
    assert str(tmp_path / "report" / "index.html") in told
    assert "Running: target-00000100, step 0 of 100" in Checked(index(tmp_path)).words


def test_a_page_under_way_says_what_since_when_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clock = write_unlabelled(tmp_path), Clock(monkeypatch, 0.3)
    monkeypatch.setattr(live, "_clock", iter(["09:00:00", "09:10:00", "09:20:00"]).__next__)
    one = live.Live(tmp_path, "digits", Display(quiet=True), clock)
    one.refresh(stage_of(folder))
    write_health(folder, 200)
    clock.now += 600
    one.refresh(stage_of(folder, steps=4000))
    made = Checked(index(tmp_path))
    assert "Running: target-00000100, step 200 of 4,000" in made.words
    assert "started 09:00:00, last updated 09:10:00" in made.words
    assert "the run was stopped: the same command continues it" in made.words
    refreshes = [attributes for _, attributes in made.elements if "http-equiv" in attributes]
    (seconds,) = [one["content"] for one in refreshes if one["http-equiv"] == "refresh"]
    assert seconds == "30", "a hundred times what the page before took"
    clock.now += 600
    one.refresh(stage_of(folder), "linear")
    assert "Running: target-00000100, linear ;" in Checked(index(tmp_path)).words


def test_the_page_at_the_end_has_no_clock_and_is_that_of_a_run_that_nobody_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_unlabelled(tmp_path)
    read(tmp_path)
    unwatched = index(tmp_path)
    one = live.Live(tmp_path, "digits", Display(quiet=True), Clock(monkeypatch, 0.0))
    one.refresh(stage_of(folder))
    assert index(tmp_path) != unwatched
    made = read(tmp_path)
    assert index(tmp_path) == unwatched
    assert "Running" not in made.words
    assert not re.search('http-equiv="refresh"', unwatched)


def test_only_what_changes_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_unlabelled(tmp_path)
    drawn: list[str] = []
    save, decode = figures.save, page.decode
    monkeypatch.setattr(
        figures, "save", lambda figure, path: (drawn.append(Path(path).name), save(figure, path))
    )
    monkeypatch.setattr(
        page, "decode", lambda path: (drawn.append(Path(path).name), decode(path))[1]
    )
    rows = results.collect(tmp_path)
    health = f"digits_health_{folder.name}.png"
    pictures = ["neighbours-0.png", "views.png"]
    for change, expected in [
        (lambda: None, [health, *pictures]),
        (lambda: None, []),
        (lambda: write_health(folder, 200), [health]),
        (lambda: (tmp_path / "report" / health).unlink(), [health]),
        (
            lambda: (folder / "views.png").write_bytes((folder / "views.png").read_bytes() + b"x"),
            ["views.png"],
        ),
    ]:
        drawn.clear()
        change()
        page.write(tmp_path, rows, "digits")
        assert sorted(drawn) == sorted(expected)
    assert (tmp_path / "report" / health).is_file()


def test_a_disk_that_is_full_ends_the_run_as_it_always_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_unlabelled(tmp_path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "whole", full)
    one = live.Live(tmp_path, "digits", Display(quiet=True), Clock(monkeypatch, 0.0))
    with pytest.raises(OSError, match="No space left"):
        one.refresh(stage_of(folder))
    assert json.loads((folder / "health.json").read_text())["level"] == "healthy"
