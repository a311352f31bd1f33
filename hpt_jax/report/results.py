"""All plans of a workdir joined with their finished evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpt_jax.report.tables import ResultRow
from hpt_jax.shapes import EVALUATION, PLAN
from hpt_jax.workdir import read_json, stage_folder


def collect(root: Path, line: Callable[[str], None] = print) -> list[ResultRow]:
    """The rows of `results.csv`, from `plans/*.json` and the evaluations that they name.

    Args:
      root: the workdir.
      line: where it is said which plans are damaged and left out.
    """
    rows = []
    for plan in plans(root, line):
        for run in plan["runs"]:
            folder = stage_folder(root, run["stage_id"]).path
            for evaluation, file in run["evaluations"].items():
                found = read_json(folder / file, EVALUATION)
                if found is None:
                    continue
                rows += [
                    ResultRow(
                        study=plan["study"],
                        arm=run["arm"],
                        stage_id=run["stage_id"],
                        dataset=plan["dataset"],
                        pretrain_steps=run["pretrain_steps"],
                        evaluation=evaluation,
                        metric=plan["metric"],
                        split=split,
                        value=found[split],
                        seed=run["seed"],
                        selected_by=found["selected_by"],
                        config_id=plan["config_id"],
                    )
                    for split in ("val", "test")
                ]
    return rows


def plans(root: Path, line: Callable[[str], None]) -> list[dict[str, Any]]:
    """The plans of a workdir, by name; those that are not whole are left out, which is said."""
    found = []
    for path in sorted((root / "plans").glob("*.json")):
        plan = read_json(path, PLAN)
        if plan is not None and plan["study"] == path.stem and _is_distinct(plan["runs"]):
            found.append(plan)
        else:
            line(f"note: {path} is damaged, and its study left out: run the study's command again")
    return found


def _is_distinct(runs: list[dict[str, Any]]) -> bool:
    """Whether no two runs would answer one question in `results.csv`."""
    judged = [run for run in runs if run["evaluations"]]
    return all(
        len({(run["arm"], run["seed"], run[told]) for run in judged}) == len(judged)
        for told in ("stage_id", "pretrain_steps")
    )
