"""All plans of a workdir joined with their finished evaluations."""

from __future__ import annotations

from pathlib import Path

from hpt_jax.report.tables import ResultRow
from hpt_jax.workdir import read_json, stage_folder


def collect(root: Path) -> list[ResultRow]:
    """The rows of `results.csv`, from `plans/*.json` and the evaluations that they name."""
    rows = []
    for path in sorted((root / "plans").glob("*.json")):
        plan = read_json(path)
        for run in plan["runs"]:
            folder = stage_folder(root, run["stage_id"]).path
            for evaluation, file in run["evaluations"].items():
                if not (folder / file).is_file():
                    continue
                found = read_json(folder / file)
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
