"""One page on everything in a workdir, made of its small files alone: no pixels, no checkpoints.

The page carries its pictures inside itself, asks for nothing else and runs no script, so that it
can be opened anywhere, sent by mail and printed.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from hpt_jax.augment.policies import ROBUSTNESS
from hpt_jax.data import survey
from hpt_jax.data.decode import decode
from hpt_jax.data.images import Unreadable
from hpt_jax.errors import UserError
from hpt_jax.report import claims, figures, graph, health, helped, results
from hpt_jax.report.tables import (
    ResultRow,
    Summary,
    interval,
    longest,
    order_arms,
    points,
    spread,
    summarize,
)
from hpt_jax.shapes import DONE, EVALUATION, LINEAGE, NEIGHBOURS
from hpt_jax.telemetry.writers import read_metrics
from hpt_jax.workdir import read_json, stage_folder, surveys_folder, whole

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure


# Analysis -> name of the figure's file, its axis, and what it shows.
_AGAINST = {
    "": (
        "accuracy_against_steps",
        figures.STEPS,
        "Each point is a pretraining of its own on the target, with a whole learning-rate "
        "schedule; dashed: models that took no step on it (direct transfer).",
    ),
    "data_robustness": (
        "accuracy_against_data",
        figures.DATA,
        "What is left with a part of the target's images to pretrain on; dashed: arms that the "
        "share does not concern.",
    ),
    "base_quality": (
        "accuracy_against_base",
        figures.BASE,
        "How much a longer trained base helps, before and after pretraining on the target; "
        "dashed: arms without a base.",
    ),
}
_DROPS = "What weaker augmentation costs: each arm against itself under moco_v2 at the same seed."


def _percent(one: Summary) -> str:
    return f"{100 * one.mean:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _interval(found: tuple[float, float] | None) -> str:
    return f"{100 * found[0]:.1f} to {100 * found[1]:.1f}" if found else "-"


def _interval_of_points(found: tuple[float, float] | None) -> str:
    return " to ".join(map(points, found)) if found else "-"


_FILTERS = {
    "points": points,
    "interval": _interval,
    "interval_of_points": _interval_of_points,
    "percent": _percent,
    "spread": spread,
    "duration": _duration,
    "counts": lambda values: ", ".join(f"{value:,}" for value in sorted(values)),
    "numbers": lambda values: ", ".join(f"{value:.3f}" for value in values),
    "splits": lambda cut: ", ".join(f"{name} ({len(rows):,})" for name, rows in cut.items()),
}


@dataclasses.dataclass(frozen=True)
class Running:
    """What a page says of a run that goes on.

    Attributes:
      doing: what it was at.
      started: when, as text.
      updated: when the page was made, as text.
      seconds: after which a browser is to load the page again.
    """

    doing: str
    started: str
    updated: str
    seconds: int


def write(
    root: Path,
    rows: Sequence[ResultRow],
    first: str = "",
    line: Callable[[str], None] = lambda text: None,
    running: Running | None = None,
) -> Path:
    """Makes `report/index.html` and its figures again from whatever is finished.

    Args:
      root: the workdir.
      rows: of its `results.csv`.
      first: the study that the page begins with.
      line: where it is said which files are damaged and left out, plans apart (see
        `results.collect`).
      running: what the page says of a run that goes on; None: it has ended.

    Returns:
      The page.
    """
    plans = results.plans(root, lambda text: None)
    plans.sort(key=lambda plan: plan["study"] != first)
    told: dict[str, None] = {}  # one file may be looked for by several studies

    def damaged(path: Path) -> None:
        told[f"note: {path} is damaged, and left out of the report"] = None

    stages = _stages(root, damaged)
    studies = [
        _study(plan, [row for row in rows if row.study == plan["study"]], stages, root, damaged)
        for plan in plans
    ]
    for text in told:
        line(text)
    text = _template().render(
        studies=studies,
        running=running,
        curves=health.CURVES,
        box_width=graph.WIDTH,
        box_height=graph.HEIGHT,
    )
    path = root / "report" / "index.html"
    with whole(path) as temporary:
        # Names of files need not be UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    return environment.get_template("page.html")


# Told of a file that is there and not whole.
Damaged = Callable[[Path], None]


def _stages(root: Path, damaged: Damaged) -> dict[str, dict[str, Any]]:
    """Stage id -> its lineage, and what `done.json` says where it is there."""
    found = {}
    for path in sorted((root / "stages").glob("*/lineage.json")):
        lineage = read_json(path, LINEAGE)
        if lineage is None:
            damaged(path)
            continue
        done = read_json(stage_folder(root, path.parent.name).done, DONE)
        found[path.parent.name] = lineage | {"done": done or {}}
    return found


def _study(
    plan: Mapping[str, Any],
    rows: list[ResultRow],
    stages: Mapping[str, dict[str, Any]],
    root: Path,
    damaged: Damaged,
) -> dict[str, Any]:
    """All that the page says of one plan; what is not there is empty."""
    config = plan["config"]
    arms = list(dict.fromkeys(run["arm"] for run in plan["runs"]))  # as the config has them
    evaluations = [
        name for name in config["evaluations"] if any(r.evaluation == name for r in rows)
    ]
    chains = {tuple(run["chain"]): run for run in plan["runs"]}
    mine = {one: stages[one] for chain in chains for one in chain if one in stages}
    trained = [one for one in mine if mine[one]["config"]["trainable"] in ("all", "batch_norm")]
    # Of one stage alone the curves are those of its health.
    curves = training_curves(mine, root, damaged) if len(trained) > 1 else []
    probes = probe_curves(plan, root)
    return {
        "name": plan["study"],
        "target": plan["dataset"],
        "domain": config.get("domain", ""),
        "metric": plan["metric"],
        "helped": helped.sentence(plan, rows, root),
        "finding": _finding(rows, evaluations),
        "figures": [
            _drawn(draw, text, root, f"{plan['study']}_{name}")
            for name, draw, text in headlines(config.get("analysis", ""), rows, arms, evaluations)
        ],
        "claims": _claims(plan, rows, evaluations),
        "arms": _arms(plan, stages) if evaluations else [],
        "tables": [_table(rows, arms, name, _subsets(plan, name, root)) for name in evaluations],
        "health": _health({one: mine[one] for one in trained}, plan["study"], root, damaged),
        "views": _views(mine, root, damaged),
        "neighbours": _neighbours(plan, root, damaged),
        "curves": _curves(curves, "step", plan["study"], "training_curves", root),
        "probes": _curves(probes, "step of the probe", plan["study"], "probe_curves", root),
        "graph": graph.layout(
            (run["arm"], [_fact(one, stages) for one in run["chain"]]) for run in plan["runs"]
        ),
        "surveys": _surveys(mine.values(), root),
        "choices": plan.get("choices", []),
        "command": command(plan),
        "stages": list(mine.values()),
        "seconds": sum(one["done"].get("seconds", 0) for one in mine.values()),
        "datasets": _datasets(mine.values()),
        "versions": _versions(mine.values()),
        "config": json.dumps(config, indent=1, sort_keys=True),
        "config_id": plan["config_id"],
    }


def headlines(
    analysis: str, rows: Sequence[ResultRow], arms: Sequence[str], evaluations: Sequence[str]
) -> list[tuple[str, functools.partial[Figure], str]]:
    """The figures of an analysis: (name of the file, what draws it, what it shows)."""
    if not evaluations:
        return []
    lengths = {row.pretrain_steps for row in rows if row.pretrain_steps}
    if analysis in ("semi_supervised", "sequential") or (not analysis and len(lengths) < 2):
        text = "Each arm at its longest pretraining on the target."
        there = {row.evaluation for row in longest(rows)}
        shown = [name for name in evaluations if name in there]
        return [("arms", functools.partial(figures.draw_bars, rows, arms, shown), text)]
    found = []
    for place, name in enumerate(evaluations):
        mine = [row for row in rows if row.evaluation == name]
        if analysis == "augmentation_robustness":
            if not any(row.arm.endswith(f"@{ROBUSTNESS[0]}") for row in mine):
                continue
            file, text = "augmentation_drops", _DROPS
            draw = functools.partial(figures.draw_drops, mine, arms, name)
        else:
            file, axis, text = _AGAINST.get(analysis, _AGAINST[""])
            draw = functools.partial(figures.draw, mine, arms, name, axis)
        found.append((f"{file}_{name}" if place else file, draw, text))
    return found


def _finding(rows: Sequence[ResultRow], evaluations: Sequence[str]) -> dict[str, Any] | None:
    """What validation would choose by the first evaluation, and how that does on test."""
    if not evaluations:
        return None
    mine = [row for row in rows if row.evaluation == evaluations[0]]
    val = summarize(mine, "val")
    most = max(one.mean for one in val)
    # A small validation set has many ties.
    best = [(one.arm, one.pretrain_steps) for one in val if one.mean == most]
    tested = [one for one in summarize(mine) if (one.arm, one.pretrain_steps) in best]
    return {"evaluation": evaluations[0], "best": tested}


def _claims(
    plan: Mapping[str, Any], rows: Sequence[ResultRow], evaluations: Sequence[str]
) -> list[dict[str, Any]]:
    """The verdicts on the paper's claims by each evaluation that all runs of the plan have."""
    analysis = plan["config"].get("analysis", "")
    asked = {(run["arm"], run["pretrain_steps"], run["seed"]) for run in plan["runs"]}
    found = []
    for name in evaluations if analysis else ():
        done = {(r.arm, r.pretrain_steps, r.seed) for r in rows if r.evaluation == name}
        if done == asked:
            reached = claims.reached(rows, name) if analysis == "separability" else []
            verdicts = claims.judge(analysis, rows, name)
            found.append({"evaluation": name, "verdicts": verdicts, "reached": reached})
    return found


def _table(
    rows: Sequence[ResultRow], arms: Sequence[str], evaluation: str, subsets: int
) -> dict[str, Any]:
    """Every arm and budget of one evaluation, the best on test and on validation marked."""
    mine = [row for row in rows if row.evaluation == evaluation]
    places = order_arms({row.arm for row in mine}, arms)
    val = {(one.arm, one.pretrain_steps): one for one in summarize(mine, "val")}
    test = sorted(summarize(mine), key=lambda one: (places.index(one.arm), one.pretrain_steps))

    def best(found: Iterable[Summary]) -> str:
        return _percent(max(found, key=lambda one: one.mean))  # as the table writes it

    return {
        "evaluation": evaluation,
        "metric": test[0].metric,
        "subsets": subsets,
        "best": best(test),
        "best_val": best(val.values()),
        "rows": [(one, interval(one), val[one.arm, one.pretrain_steps]) for one in test],
    }


def _subsets(plan: Mapping[str, Any], evaluation: str, root: Path) -> int:
    """How many subsets of labels each value is a mean over; 0 where there are none."""
    for found in _results(plan, evaluation, root).values():
        return len(found["labelled"])
    return 0


def _results(plan: Mapping[str, Any], evaluation: str, root: Path) -> dict[int, dict[str, Any]]:
    """Place among the plan's runs -> what is finished of one evaluation."""
    found = {}
    for place, run in enumerate(plan["runs"]):
        file = run["evaluations"].get(evaluation)
        folder = stage_folder(root, run["stage_id"]).path
        result = read_json(folder / file, EVALUATION) if file else None
        if result is not None:
            found[place] = result
    return found


def _health(
    stages: Mapping[str, Mapping[str, Any]], study: str, root: Path, damaged: Damaged
) -> list[dict[str, Any]]:
    """How the stages that train are doing; drawn is the first seed's longest of each chain."""
    drawn: dict[str, tuple[int, int, str]] = {}
    for stage_id, one in stages.items():
        place = (one["seed"], -one["config"]["steps"], stage_id)
        drawn[_chain(one)] = min(place, drawn.get(_chain(one), place))
    found = []
    for stage_id, one in stages.items():
        of_stage = health.of_stage(stage_id, one, root, damaged)
        if of_stage is None:
            continue
        panels = health.panels(of_stage["metrics"], of_stage["measures"], of_stage["chance"])
        is_drawn = drawn[_chain(one)][2] == stage_id and panels
        name = f"{study}_health_{stage_id}"
        draw = functools.partial(figures.draw_health, panels)
        figure = _drawn(draw, "", root, name) if is_drawn else None
        facts = {"chain": _chain(one), "seed": one["seed"], "steps": one["config"]["steps"]}
        found.append(of_stage | facts | {"done": bool(one["done"]), "figure": figure})
    return found


def training_curves(
    stages: Mapping[str, Mapping[str, Any]],
    root: Path,
    damaged: Damaged = lambda path: None,
) -> list[figures.Curve]:
    """The metrics of each chain's longest stages, every seed a line."""
    most: dict[str, int] = {}
    for one in stages.values():
        most[_chain(one)] = max(most.get(_chain(one), 0), one["config"]["steps"])
    found = []
    for stage_id, one in stages.items():
        path = stage_folder(root, stage_id).metrics
        try:
            rows = read_metrics(path)
        except UserError:
            damaged(path)
            continue
        if not rows or one["config"]["steps"] != most[_chain(one)]:
            continue
        steps = [int(row["step"]) for row in rows]
        for column in sorted(set(rows[0]) - {"step", "learning_rate", "queue_fill"}):
            values = [row[column] for row in rows]
            found.append(figures.Curve(column.replace("_", " "), _chain(one), steps, values))
    return sorted(found, key=lambda curve: (curve.panel != "loss", curve.panel))


def probe_curves(plan: Mapping[str, Any], root: Path) -> list[figures.Curve]:
    """Validation of the paper's probe over its own steps; each arm's longest, every seed a line."""
    runs = plan["runs"]
    most = {run["arm"]: run["pretrain_steps"] for run in sorted(runs, key=_steps)}
    found = []
    for place, result in _results(plan, "linear_sgd", root).items():
        run = runs[place]
        curve = result["selections"][0].get("curve") if result["selections"] else None
        if curve and run["pretrain_steps"] == most[run["arm"]]:
            steps, values = zip(*curve, strict=True)
            percents = [100 * value for value in values]
            found.append(
                figures.Curve(f"validation {plan['metric']} (%)", run["arm"], steps, percents)
            )
    return found


def _steps(run: Mapping[str, Any]) -> int:
    return run["pretrain_steps"]


def _chain(stage: Mapping[str, Any]) -> str:
    """The names of a stage and of those before it."""
    names = [one["id"].rpartition("-")[0] for one in (*stage["parents"], stage)]
    return " → ".join(names)


def _fact(stage_id: str, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the graph says of a stage, which may not have begun."""
    name = stage_id.rpartition("-")[0]
    if stage_id not in stages:
        return {"name": name, "dataset": "", "how": "not begun", "steps": 0, "seed": 0}
    config = stages[stage_id]["config"]
    how = {"statistics": "statistics", "nothing": "as it is"}.get(config["trainable"], "")
    return {
        "name": name,
        "dataset": config["dataset"],
        "how": how,
        "steps": config["steps"],
        "seed": stages[stage_id]["seed"],
    }


# What a stage does, by what it trains.
_DOES = {
    "all": "trained on {}",
    "batch_norm": "its batch norm trained on {}",
    "statistics": "its batch norm's statistics of {}",
}


def _arms(
    plan: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Each arm whose stages have begun, and what it does: (name, text).

    Nothing where arms differ by what is not told: shares of a set, policies, lengths of the base.
    """
    found = {}
    for run in plan["runs"]:
        if run["chain"] and all(one in stages for one in run["chain"]):
            configs = [stages[one]["config"] for one in run["chain"]]
            does = [
                _DOES[one["trainable"]].format(one["dataset"])
                for one in configs
                if one["trainable"] in _DOES
            ]
            init = configs[0]["init"]
            start = "random weights" if init == "random" else init
            found[run["arm"]] = ", then ".join([start, *does])
    return list(found.items()) if len(set(found.values())) == len(found) else []


def command(plan: Mapping[str, Any]) -> str:
    """What to type to run a plan again; nothing where it was asked for from Python."""
    asked = plan.get("command", {})
    if not asked.get("config"):
        return ""
    words = ["--config", asked["config"], "--workdir", asked["workdir"]]
    words += [f"--config.{field}={text}" for field, text in asked["overrides"]]
    return f"python -m hpt_jax.main {shlex.join(words)}"


def _datasets(stages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each dataset once, as the stage that pretrains on most of it sees it."""
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        data = stage["dataset"]
        if not data:
            continue
        numbers = {"mean": stage["pixel_mean"], "std": stage["pixel_std"]}
        known = found.setdefault(data["name"], data | numbers | {"subsets": set()})
        known["subsets"].add(data["pretrained_on"])
        if data["pretrained_on"] > known["pretrained_on"]:
            known |= data | numbers
    return list(found.values())


def _surveys(
    stages: Iterable[Mapping[str, Any]], root: Path
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Each dataset that was looked at: its name, how many images were, and (what, text) pairs."""
    data = [stage["dataset"] for stage in stages if stage["dataset"]]
    named = {one["fingerprint"]: one["name"] for one in data}
    folder = surveys_folder(root)
    found = (
        survey.load(folder, name, fingerprint)
        for fingerprint, name in named.items()
        if re.fullmatch("[0-9a-f]+", fingerprint)  # it is a file's name, and may be a stranger's
    )
    return [(one.dataset, survey.looked_at(one), survey.rows(one)) for one in found if one]


def _versions(stages: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Package -> its version; several where stages differ."""
    found: dict[str, set[str]] = {}
    for stage in stages:
        for package, version in stage["versions"].items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(versions)) for package, versions in found.items()}


def _views(
    stages: Mapping[str, Mapping[str, Any]], root: Path, damaged: Damaged
) -> list[dict[str, Any]]:
    """One stage's views for each dataset and augmentation."""
    found: dict[str, dict[str, Any]] = {}
    for stage_id, stage in stages.items():
        path, config = stage_folder(root, stage_id).views, stage["config"]
        looks = json.dumps([config["dataset"], config["augment"], config["image_size"]])
        if looks in found or not path.is_file():
            continue
        tiles = _tiles(path, across=5)
        if tiles is None:
            damaged(path)
        else:
            found[looks] = {"stage": _chain(stage), "dataset": config["dataset"], "tiles": tiles}
    return list(found.values())


def _neighbours(plan: Mapping[str, Any], root: Path, damaged: Damaged) -> list[dict[str, Any]]:
    """What is there of the neighbours before and after pretraining on the target, first seed."""
    found: list[dict[str, Any]] = []
    for path, told in _before_and_after(plan, root).items():
        if not (path.is_file() and path.with_suffix(".png").is_file()):
            continue
        content = read_json(path, NEIGHBOURS)
        facts = [[query, *query["neighbours"]] for query in content["queries"]] if content else []
        tiles = _tiles(path.with_suffix(".png"), across=len(facts[0])) if facts else None
        if tiles is None or [len(row) for row in tiles] != [len(row) for row in facts]:
            damaged(path)
            continue
        shown = [
            [one | tile for one, tile in zip(of_query, row, strict=True)]
            for of_query, row in zip(facts, tiles, strict=True)
        ]
        found.append({"told": told, "queries": shown})
    return found


def _before_and_after(plan: Mapping[str, Any], root: Path) -> dict[Path, str]:
    """The files of neighbours that are shown, and which backbone each is by, in words."""
    runs = plan["runs"]
    if not runs:
        return {}
    names = [run["arm"] for run in runs]
    before = [run for run in runs if run["arm"] == "B"] or [r for r in runs if not _steps(r)]
    last = next((name for name in ("B+S+T", "B+T") if name in names), names[-1])
    after = [run for run in runs if run["arm"] == last and run["seed"] == runs[0]["seed"]]
    chosen = before[:1] + sorted(after, key=_steps)[-1:]
    if not plan["dataset"]:
        run = chosen[-1]
        folder = stage_folder(root, run["stage_id"]).path
        words = "what the training starts from", "after the training"
        files = run.get("before") or "none", run.get("neighbours", "none")
        return {folder / file: told for file, told in zip(files, words, strict=True)}
    found: dict[Path, str] = {}
    for run in chosen:
        path = stage_folder(root, run["stage_id"]).path / run.get("neighbours", "none")
        steps = f"{_steps(run):,} steps" if _steps(run) else "no step"
        found.setdefault(path, f"{run['arm']}, {steps} on the target")
    return found


def _tiles(path: Path, across: int) -> list[list[dict[str, Any]]] | None:
    """The square images of a montage, row by row; None where it is none."""
    key, stamp = (path, across), _stamp(path)
    if key in _montages and _montages[key][0] == stamp:
        return _montages[key][1]
    try:
        picture = Image.fromarray(decode(str(path)))
    except (Unreadable, TypeError):  # TypeError: bands that no picture has
        return None
    size = picture.width // across
    if not size or picture.height % size:
        return None
    tiles = [
        [_embedded(picture.crop((x, y, x + size, y + size))) for x in range(0, size * across, size)]
        for y in range(0, picture.height, size)
    ]
    _montages[key] = stamp, tiles
    return tiles


def _embedded(picture: Image.Image) -> dict[str, Any]:
    """A picture as a data URI, in the smaller of two formats, and its size in pixels."""
    coded = []
    for name, options in (("png", {"optimize": True}), ("webp", {"quality": 85})):
        buffer = io.BytesIO()
        picture.save(buffer, name, **options)
        coded.append((len(buffer.getvalue()), name, buffer.getvalue()))
    _, name, data = min(coded)
    uri = f"data:image/{name};base64,{base64.b64encode(data).decode()}"
    return {"uri": uri, "width": picture.width, "height": picture.height}


def _curves(
    curves: Sequence[figures.Curve], label: str, study: str, name: str, root: Path
) -> dict[str, Any] | None:
    if not curves:
        return None
    draw = functools.partial(figures.draw_curves, curves, label)
    return _drawn(draw, "", root, f"{study}_{name}")


# While a run goes on the page is made again and again, and few of its pictures change: the path of
# a figure -> what it was drawn from, what the files were then, and what the page shows; the same of
# the tiles of a montage.
_figures: dict[Path, tuple[Any, Any, dict[str, Any]]] = {}
_montages: dict[tuple[Path, int], tuple[Any, list[list[dict[str, Any]]]]] = {}


def _stamp(path: Path) -> Any:
    """What changes with a file; None where it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _drawn(draw: functools.partial[Figure], text: str, root: Path, name: str) -> dict[str, Any]:
    """Saves a figure; the page shows its SVG in the page's own colours."""
    path = root / "report" / f"{name}.png"
    asked, files = (draw.func, draw.args), (path, path.with_suffix(".svg"))
    last = _figures.get(path)
    if last is not None and last[0] == asked and last[1] == [*map(_stamp, files)]:
        return last[2] | {"text": text}
    figures.save(draw(), path)
    shown = {
        "svg": _inline(path.with_suffix(".svg").read_text(), name),
        "text": text,
        "file": path.name,
    }
    _figures[path] = asked, [*map(_stamp, files)], shown
    return shown


def _inline(svg: str, name: str) -> str:
    """The drawing alone, its ids apart from those of other drawings."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    width = re.search(r'width="([\d.]+)pt"', svg)
    assert width is not None
    points = float(width[1])  # to as many pixels; text of ten points stays readable between these
    limits = f"min-width:{0.8 * points:.0f}px;max-width:{1.6 * points:.0f}px"
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 style="{limits}">', svg, count=1)
    prefix = re.sub(r"\W", "_", name)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for ours, of_page in figures.PAGE_COLORS.items():
        svg = svg.replace(ours, f"var(--{of_page})")
    return svg
