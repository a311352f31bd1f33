"""The page says how a training is doing: before and after in words, curves, and the verdict."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from health_files import QUEUE, write_health
from test_report_page import EVIL, Checked, write_workdir

from hpt_jax.report import figures, health, page, results
from hpt_jax.shapes import HEALTH, fits


def write_unlabelled(root: Path, **verdict: object) -> Path:
    """A workdir of one stage on a set without labels; returns the stage's folder."""
    plan = write_workdir(root, seeds=(0,))
    (run,) = [r for r in plan["runs"] if (r["arm"], r["pretrain_steps"]) == ("B+T", 100)]
    config = plan["config"] | {"evaluations": []}
    plan |= {"dataset": "", "config": config, "runs": [run | {"evaluations": {}}]}
    (root / "plans" / "digits.json").write_text(json.dumps(plan))
    folder = root / "stages" / run["stage_id"]
    lineage = json.loads((folder / "lineage.json").read_text())
    lineage["config"]["moco"] = {"queue_size": QUEUE}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    write_health(folder, 100, **verdict)
    return folder


def read(root: Path) -> Checked:
    return Checked(page.write(root, results.collect(root), "digits").read_text())


@pytest.mark.parametrize(
    ("step", "mark", "level", "marked"),
    [(0, "●", "healthy", False), (0, "■", "alarm", True), (100, "●", "healthy", True)],
)
def test_nothing_is_called_healthy_before_its_first_step(
    tmp_path: Path, step: int, mark: str, level: str, marked: bool
) -> None:
    write_unlabelled(tmp_path, step=step, level=level, text="as it is")
    words = read(tmp_path).words
    assert "as it is" in words
    assert (f"{mark} {level}" in words) == marked


def test_an_unlabelled_run_begins_with_before_and_after_in_words(tmp_path: Path) -> None:
    folder = write_unlabelled(tmp_path, recommendation="Train for longer.")
    words = read(tmp_path).words
    last = [float(cell) for cell in (folder / "measures.csv").read_text().split()[-1].split(",")]
    for name, numbers in (
        ("(retrieval)", f"30.0 % {100 * last[4]:.1f} %"),
        ("(RankMe)", f"12.0 {last[1]:.1f}"),
        ("(uniformity)", f"-1.00 {last[3]:.2f}"),
    ):
        assert re.search(rf"{re.escape(name)} [^()]* {re.escape(numbers)}", words), name
    assert "after, step 100" in words
    assert "kNN" not in words
    for text in ("● healthy", "loss below chance", "Train for longer.", "too early to tell"):
        assert words.index(text) < words.index("What training sees"), text


def test_a_stage_under_way_says_now_and_its_panel_is_open(tmp_path: Path) -> None:
    folder = write_unlabelled(tmp_path, level="alarm")
    (folder / "done.json").unlink()
    made = read(tmp_path)
    assert "now, step 100" in made.words
    assert "■ alarm" in made.words
    first = next(attributes for tag, attributes in made.elements if tag == "details")
    assert "open" in first


def test_without_the_files_there_is_no_section(tmp_path: Path) -> None:
    folder = write_unlabelled(tmp_path)
    for name in ("metrics.csv", "measures.csv", "health.json"):
        (folder / name).unlink()
    assert "Health" not in read(tmp_path).words


@pytest.mark.parametrize(
    ("name", "content"),
    [("measures.csv", b"step,rankme\n1,x\n"), ("health.json", b'{"level": "fine"}')],
)
def test_a_damaged_file_is_named_and_the_rest_is_told(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = write_unlabelled(tmp_path)
    (folder / name).write_bytes(content)
    told: list[str] = []
    words = Checked(page.write(tmp_path, [], "digits", told.append).read_text()).words
    assert ("RankMe" in words) == (name != "measures.csv")
    assert ("too early to tell" in words) == (name != "health.json")
    assert told == [f"note: {folder / name} is damaged, and left out of the report"]


def test_what_stands_in_the_files_is_text_or_left_out(tmp_path: Path) -> None:
    folder = write_unlabelled(
        tmp_path,
        text=EVIL,
        recommendation=EVIL,
        history=[{"step": 1, "level": "watch", "text": EVIL}],
    )
    for name in ("metrics.csv", "measures.csv"):
        text = (folder / name).read_text().replace("accuracy", EVIL.replace('"', ""))
        (folder / name).write_text(text.replace("retrieval", "<u>").replace("\n100,", "\n100,nan"))
    made = read(tmp_path)
    assert made.words.count(EVIL) > 3
    assert not {"script", "u"} & {tag for tag, _ in made.elements}


def test_the_line_of_chance_is_that_of_the_queue_and_filling_ends_where_it_is_full(
    tmp_path: Path,
) -> None:
    folder = write_unlabelled(tmp_path)
    write_health(folder, 400)
    lineage = json.loads((folder / "lineage.json").read_text())
    found = health.of_stage(folder.name, lineage, tmp_path, lambda path: None)
    assert found is not None
    panels = health.panels(found["metrics"], found["measures"], found["chance"])
    loss = panels[0]
    assert loss.chance == pytest.approx(math.log(QUEUE + 1))
    assert loss.until == 130  # 4 keys a step: 128 steps, and rows are of every tenth
    assert len(loss.lines["loss"]) == 40
    assert [panel.title for panel in panels if panel.before] == [
        "retrieval", "rankme", "alignment", "uniformity",
    ]  # fmt: skip
    write_health(folder, 100)
    found = health.of_stage(folder.name, lineage, tmp_path, lambda path: None)
    assert found is not None
    assert health.panels(found["metrics"], [], None)[0].until == 100, "not full yet"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9])
def test_any_number_of_panels_fills_whole_rows(count: int) -> None:
    panels = [figures.Panel(str(place), [0, 1], {"x": [1, math.nan]}) for place in range(count)]
    figure = figures.draw_health(panels)
    spans = [axes.get_subplotspec() for axes in figure.axes]
    cells = [(row, column) for one in spans for row in one.rowspan for column in one.colspan]
    assert len(set(cells)) == len(cells) == 3 * (max(row for row, _ in cells) + 1)


def test_values_that_are_no_numbers_still_make_a_figure(tmp_path: Path) -> None:
    nothing = [math.nan, math.inf, 0.0, -1.0]
    panel = figures.Panel("x", [0, 1, 2, 3], {"x": nothing}, chance=6.0, until=2, before=True)
    log = figures.Panel("x", [0, 1, 2, 3], {"x": nothing}, log=True)
    figures.save(figures.draw_health([panel, log]), tmp_path / "x.png")
    assert (tmp_path / "x.svg").stat().st_size > 5000


def test_the_files_of_these_tests_have_the_shape_of_a_runs(tmp_path: Path) -> None:
    folder = write_unlabelled(tmp_path)
    assert fits(json.loads((folder / "health.json").read_text()), HEALTH)


def test_the_longest_of_each_chain_is_drawn_and_the_others_are_told(tmp_path: Path) -> None:
    write_workdir(tmp_path, seeds=(0,))  # chains 'scratch' and 'target' of 50 and 100 steps
    for folder in (tmp_path / "stages").glob("[st]*"):
        if "statistics" not in folder.name:
            write_health(folder, 100)
    words = read(tmp_path).words
    assert words.count("● healthy") == 4
    assert sorted(path.name for path in (tmp_path / "report").glob("*_health_*.png")) == [
        "digits_health_scratch-00000100.png",
        "digits_health_target-00000100.png",
    ]
