"""Makes the figures and tables of docs/reproduction.md again from the CSV files beside this one.

    python docs/reproduction/build.py

After a rerun, `--take runs/reproduction` first takes over the rows of the studies that are
finished in that workdir. Times come from wall_times.csv, which is written by hand.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from hpt_jax import config as config_lib
from hpt_jax import resolve
from hpt_jax.config import ANALYSES
from hpt_jax.paper import TRIPLES
from hpt_jax.report import claims, page, tables
from hpt_jax.report.tables import ResultRow, points, spread
from hpt_jax.workdir import read_json

HERE = Path(__file__).parent
PAGE = HERE.parent / "reproduction.md"
CONFIGS = HERE.parents[1] / "configs" / "studies"
# What stands between `<!-- KIND STUDY -->` and `<!-- end -->` is made here.
_BLOCK = re.compile(r"<!-- (\w+) ?(\w*) -->\n.*?<!-- end -->", re.DOTALL)
_NAMES = {f"{triple}_{name}": (triple, name) for triple in TRIPLES for name in ANALYSES}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--take", type=Path, metavar="WORKDIR")
    workdir = parser.parse_args().take
    if workdir:
        take(workdir)
    for study in studies():
        draw(study)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def take(workdir: Path) -> None:
    """Writes the CSV file of each study of which all is finished."""
    rows = tables.read_results(workdir / "results.csv")
    for study in _NAMES:
        path = workdir / "plans" / f"{study}.json"
        mine = [row for row in rows if row.study == study]
        if mine and len(mine) == 2 * sum(
            len(run["evaluations"]) for run in read_json(path)["runs"]
        ):
            tables.write_results(HERE / f"{study}.csv", mine)


def studies() -> list[str]:
    """Those with results, triple by triple."""
    return [name for name in _NAMES if (HERE / f"{name}.csv").is_file()]


def draw(study: str) -> None:
    """Writes the study's first figure."""
    rows, config = rows_of(study), config_of(study)
    # Bars of all evaluations stand side by side; of the others the first has the figure.
    bars = config.analysis in ("semi_supervised", "sequential")
    shown = config.evaluations if bars else config.evaluations[:1]
    ((_, draw, _),) = page.headlines(config.analysis, rows, list(config.arms), shown)
    # Without the library's version the same results give the same file.
    draw().savefig(HERE / f"{study}.png", dpi=110, metadata={"Software": None})


def filled(text: str) -> str:
    """The page with all its blocks made anew.

    Args:
      text: of the page.

    Raises:
      KeyError: a block is of a kind, or a study, that is not known.
    """

    def block(found: re.Match[str]) -> str:
        kind, study = found.groups()
        make, name = _BLOCKS[kind], f"{kind} {study}" if study else kind
        missing = study and _NAMES[study] and study not in studies()
        lines = ["Not run yet."] if missing else make(study)
        return "\n".join([f"<!-- {name} -->", *lines, "<!-- end -->"])

    return _BLOCK.sub(block, text)


def rows_of(study: str) -> list[ResultRow]:
    """The rows of a study's CSV file."""
    return tables.read_results(HERE / f"{study}.csv")


def config_of(study: str) -> config_lib.Config:
    """What a study's command resolves to where no data is at hand."""
    triple, analysis = _NAMES[study]
    config = config_lib.load(str(CONFIGS / f"{analysis}.py"))
    return resolve.resolve(config, [("triple", triple)])


def _results(study: str) -> list[str]:
    """Each arm and number of steps, a column for each evaluation."""
    rows, config = rows_of(study), config_of(study)
    found = {(one.arm, one.pretrain_steps, one.evaluation): one for one in tables.summarize(rows)}
    order = list(config.arms).index
    places = sorted({(order(arm), arm, steps) for arm, steps, _ in found})
    columns = [f"`{name}`" for name in config.evaluations]
    lines = _head(["arm", "steps on the target", *columns])
    for _, arm, steps in places:
        cells = [spread(found[arm, steps, name]) for name in config.evaluations]
        lines.append(_line([arm, f"{steps:,}", *cells]))
    return lines


def _verdicts(study: str) -> list[str]:
    """Each claim of the study's analysis, by each evaluation."""
    config = config_of(study)
    judged = [_judged(study, name) for name in config.evaluations]
    lines = _head(["claim", "difference", *(f"`{name}`" for name in config.evaluations)])
    for same in zip(*judged, strict=True):
        lines.append(_line([same[0].claim, same[0].compared, *map(_cell, same)]))
    return lines


def _judged(study: str, evaluation: str) -> list[claims.Verdict]:
    """The verdicts; in sequential studies on T given all steps too, which separability ran."""
    triple, analysis = _NAMES[study]
    rows, config = rows_of(study), config_of(study)
    beside = f"{triple}_separability"
    if analysis == "sequential" and beside in studies():
        chain = sum(config.stages[stage].budgets[-1] for stage in config.arms["B+S+T"])
        rows += [
            dataclasses.replace(row, arm=claims.ALL_STEPS)
            for row in rows_of(beside)
            if (row.arm, row.pretrain_steps) == ("T", chain)
        ]
    return claims.judge(analysis, rows, evaluation)


def _reached(study: str) -> list[str]:
    """Steps that T and B+T need for the best of either and for the base, and their ratio."""
    lines = _head(
        ["by", "to reach", "T needs", "B+T needs", "speed-up (each seed)", "B+T there, less it"]
    )
    for name in config_of(study).evaluations:
        found = {(one.goal, one.arm): one for one in claims.reached(rows_of(study), name)}
        for goal in dict.fromkeys(goal for goal, _ in found):
            arm, steps = goal
            scratch, hpt = found[goal, "T"], found[goal, "B+T"]
            ratios = [_ratio(scratch.steps, hpt.steps)]
            ratios += map(_ratio, scratch.of_seeds, hpt.of_seeds)
            ratio = f"{ratios[0]} ({', '.join(ratios[1:])})"
            words = f"{arm} after {steps:,}" if steps else arm
            cells = [_needed(scratch), _needed(hpt), ratio, _difference(hpt.verdict)]
            lines.append(_line([f"`{name}`", words, *cells]))
    return lines


def _ratio(scratch: int | None, hpt: int | None) -> str:
    return "-" if scratch is None or hpt is None else f"{scratch / hpt:.3g}"


def _needed(one: claims.Reached) -> str:
    return f"more than {one.longest:,}" if one.steps is None else f"{one.steps:,}"


def _summary(_: str) -> list[str]:
    """Every claim that is judged, one column for each hierarchy, by its first evaluation."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for study in studies():
        for one in _judged(study, config_of(study).evaluations[0]):
            cells.setdefault((one.claim, one.compared), {})[_NAMES[study][0]] = _cell(one)
    triples = list(dict.fromkeys(_NAMES[study][0] for study in studies()))
    lines = _head(["claim", "difference", *triples])
    for (claim, compared), found in cells.items():
        lines.append(_line([claim, compared, *(found.get(triple, "") for triple in triples)]))
    return lines


def _times(_: str) -> list[str]:
    """The wall time of each study, in the order in which they ran."""
    with open(HERE / "wall_times.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = _head(["study", "seeds", "wall time, minutes"])
    for row in rows:
        seeds = len({one.seed for one in rows_of(row["study"])})
        lines.append(_line([row["study"], str(seeds), f"{float(row['seconds']) / 60:.1f}"]))
    total = sum(float(row["seconds"]) for row in rows) / 60
    return [*lines, _line(["all", "", f"{total:.1f}"])]


_BLOCKS: dict[str, Callable[[str], list[str]]] = {
    "results": _results,
    "verdicts": _verdicts,
    "reached": _reached,
    "summary": _summary,
    "times": _times,
}


def _difference(one: claims.Verdict) -> str:
    text = points(one.mean)
    if one.interval:
        low, high = map(points, one.interval)
        text += f" ({low} to {high})"
    return text


def _cell(one: claims.Verdict) -> str:
    word = one.word if one.word == "undecided" else f"**{one.word}**"
    return f"{word} {_difference(one)}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


if __name__ == "__main__":
    main()
