"""Makes the figures and tables of docs/reproduction.md again from the CSV files beside this one.

    python docs/reproduction/build.py

After a rerun, `--take runs/reproduction` first takes over the rows of the studies that are
finished in that workdir. Times come from wall_times.csv, which is written by hand.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from hpt_jax import config as config_lib
from hpt_jax import resolve
from hpt_jax.config import ANALYSES
from hpt_jax.paper import TRIPLES
from hpt_jax.report import claims, page, tables
from hpt_jax.report.tables import ResultRow
from hpt_jax.workdir import read_json

HERE = Path(__file__).parent
PAGE = HERE.parent / "reproduction.md"
CONFIGS = HERE.parents[1] / "configs" / "studies"
# What stands between `<!-- KIND STUDY -->` and `<!-- end -->` is made here.
_BLOCK = re.compile(r"<!-- (\w+) ?(\w*) -->\n.*?<!-- end -->", re.DOTALL)
# The steps of the whole chain, in the studies whose T takes them.
_CHAIN_STEPS = 1600


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
    for path in sorted((workdir / "plans").glob("*.json")):
        plan = read_json(path)
        mine = [row for row in rows if row.study == plan["study"]]
        asked = {(run["arm"], run["pretrain_steps"], run["seed"]) for run in plan["runs"]}
        if len(mine) == 2 * len(asked) * len(plan["config"]["evaluations"]):
            tables.write_results(HERE / f"{plan['study']}.csv", mine)


def studies() -> list[str]:
    """Those with results, triple by triple."""
    names = [f"{triple}_{analysis}" for triple in TRIPLES for analysis in ANALYSES]
    return [name for name in names if (HERE / f"{name}.csv").is_file()]


def draw(study: str) -> None:
    """Writes the study's first figure."""
    rows, config = rows_of(study), config_of(study)
    _, figure, _ = page.headlines(config.analysis, rows, list(config.arms), config.evaluations)[0]
    # Without the library's version the same results give the same file.
    figure.savefig(HERE / f"{study}.png", dpi=110, metadata={"Software": None})


def filled(text: str) -> str:
    """The page with all its blocks made anew.

    Args:
      text: of the page.

    Raises:
      KeyError: a block is of a kind that is not known.
    """

    def block(found: re.Match[str]) -> str:
        kind, study = found.groups()
        lines = _BLOCKS[kind](study) if not study or study in studies() else ["Not run yet."]
        return "\n".join([f"<!-- {kind}{' ' * bool(study)}{study} -->", *lines, "<!-- end -->"])

    return _BLOCK.sub(block, text)


def rows_of(study: str) -> list[ResultRow]:
    """The rows of a study's CSV file."""
    return tables.read_results(HERE / f"{study}.csv")


def config_of(study: str) -> config_lib.Config:
    """What a study's command resolves to where no data is at hand."""
    triple, _, analysis = study.partition("_")
    config = config_lib.load(str(CONFIGS / f"{analysis}.py"))
    return resolve.resolve(config, [("triple", triple)])


def _results(study: str) -> list[str]:
    """Each arm and number of steps, a column for each evaluation."""
    rows, config = rows_of(study), config_of(study)
    found = {(one.arm, one.pretrain_steps, one.evaluation): one for one in tables.summarize(rows)}
    places = sorted(
        {(arm, steps) for arm, steps, _ in found},
        key=lambda place: (list(config.arms).index(place[0]), place[1]),
    )
    columns = [f"`{name}`" for name in config.evaluations]
    lines = _head(["arm", "steps on the target", *columns])
    for arm, steps in places:
        cells = [_spread(found[arm, steps, name]) for name in config.evaluations]
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
    triple, _, analysis = study.partition("_")
    rows = rows_of(study)
    beside = f"{triple}_separability"
    if analysis == "sequential" and beside in studies():
        rows += [
            ResultRow(**{**vars(row), "arm": claims.ALL_STEPS})
            for row in rows_of(beside)
            if (row.arm, row.pretrain_steps) == ("T", _CHAIN_STEPS)
        ]
    return claims.judge(analysis, rows, evaluation)


def _reached(study: str) -> list[str]:
    """Steps that T and B+T need for T's best and for the base."""
    lines = _head(["by", "to reach", "arm", "steps on the target", "difference there"])
    for name in config_of(study).evaluations:
        for one in claims.reached(rows_of(study), name):
            arm, steps = one.goal
            goal = f"{arm} after {steps:,}" if steps else arm
            needed = f"not in {one.longest:,}" if one.steps is None else f"{one.steps:,}"
            lines.append(_line([f"`{name}`", goal, one.arm, needed, _difference(one.verdict)]))
    return lines


def _summary(_: str) -> list[str]:
    """Every claim that is judged, one column for each hierarchy, by its first evaluation."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for study in studies():
        for one in _judged(study, config_of(study).evaluations[0]):
            triple = study.partition("_")[0]
            cells.setdefault((one.claim, one.compared), {})[triple] = _cell(one)
    triples = list(dict.fromkeys(study.partition("_")[0] for study in studies()))
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


def _spread(one: tables.Summary) -> str:
    return f"{100 * one.mean:.1f}" + ("" if one.std is None else f" ± {100 * one.std:.1f}")


def _difference(one: claims.Verdict) -> str:
    text = f"{100 * one.mean:+.1f}"
    if one.interval:
        text += " ({:+.1f} to {:+.1f})".format(*(100 * end for end in one.interval))
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
