"""What docs/reproduction.md says in numbers is what its CSV files say."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest

from hpt_jax import plan
from hpt_jax.report import tables

DOCS = Path(__file__).parents[1] / "docs"
_SPEC = importlib.util.spec_from_file_location("build", DOCS / "reproduction" / "build.py")
assert _SPEC is not None
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)

STUDIES = build.studies()
TEXT = build.PAGE.read_text(encoding="utf-8")


def test_every_table_is_what_the_csv_files_give():
    assert build.filled(TEXT) == TEXT


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_whole_and_shown(study):
    rows, config = build.rows_of(study), build.config_of(study)
    assert {row.study for row in rows} == {study} == {config.name}
    assert {row.arm for row in rows} == set(config.arms)
    assert {row.evaluation for row in rows} == set(config.evaluations)
    for one in tables.summarize(rows):
        assert one.seeds == len(config.seeds) >= 3, one
    for arm, stages in config.arms.items():
        last = config.stages[stages[-1]] if stages else None
        budgets = last.budgets if last and last.dataset == config.target else (0,)
        assert {row.pretrain_steps for row in rows if row.arm == arm} == set(budgets)
    assert (DOCS / "reproduction" / f"{study}.png").is_file()
    assert f"](reproduction/{study}.png)" in TEXT
    for kind in ("results", "verdicts"):
        assert f"<!-- {kind} {study} -->" in TEXT


def test_figures_and_times_are_of_the_studies_and_of_no_others():
    shown = {path.stem for path in (DOCS / "reproduction").glob("*.png")}
    with open(DOCS / "reproduction" / "wall_times.csv", newline="", encoding="utf-8") as file:
        timed = {row["study"] for row in csv.DictReader(file)}
    assert shown == timed == set(STUDIES)


def test_another_recipe_makes_these_results_old():
    """They are run again then, or the page says that they are of an older version."""
    versions = re.search(r"version (\d+) of the recipe and (\d+) of the evaluations", TEXT)
    assert versions is not None
    now = (str(plan.RECIPE_VERSION), str(plan.EVALUATION_VERSION))
    assert (versions.groups() == now) != ("These are older" in TEXT)


def test_a_finished_study_is_taken_over_and_an_unfinished_one_is_not(tmp_path, monkeypatch):
    (study, *_) = STUDIES
    rows = build.rows_of(study)
    evaluations = dict.fromkeys({row.evaluation for row in rows}, "a file")
    runs = {(row.arm, row.pretrain_steps, row.seed) for row in rows}
    made = {"runs": [{"evaluations": evaluations} for _ in runs]}
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / f"{study}.json").write_text(json.dumps(made))
    monkeypatch.setattr(build, "HERE", tmp_path)
    tables.write_results(tmp_path / "results.csv", rows[:-1])
    build.take(tmp_path)
    assert not (tmp_path / f"{study}.csv").exists()
    tables.write_results(tmp_path / "results.csv", rows)
    build.take(tmp_path)
    assert tables.read_results(tmp_path / f"{study}.csv") == rows
