"""The page holds all inside itself, says what the results say, and survives what is absent."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_files import DONE, LINEAGE

from hpt_jax.report import graph, page, results, tables

EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "img", "br", "hr", "link", "input"}
ACCURACY = {"B": 0.5, "T": 0.6, "B+T": 0.7}


class Checked(html.parser.HTMLParser):
    """Every tag closed in its order; gathers elements and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def value(arm: str, steps: int, seed: int) -> float:
    return ACCURACY[arm] + 0.01 * seed + steps / 10_000


def write_stage(root: Path, name: str, seed: int, steps: int, dataset: str) -> str:
    """What a stage leaves behind, less its checkpoints."""
    stage_id = f"{name}-{seed:04d}{steps:04d}"
    folder = root / "stages" / stage_id
    (folder / "evaluations").mkdir(parents=True)
    lineage = LINEAGE | {
        "id": stage_id,
        "words": f"{name} ({dataset})",
        "seed": seed,
        "config": LINEAGE["config"]
        | {
            "dataset": dataset,
            "trainable": "all" if steps else "statistics",
            "steps": steps,
            "image_size": 8,
        },
        "dataset": {
            "name": dataset,
            "fingerprint": "f00d",
            "images": 1234,
            "pretrained_on": 1000,
            "unreadable": ["a.png"],
            "pixel_window": [3, 900],
            "cut": {"test": [1, 2, 3]},
            "subset": None,
        },
        "pixel_mean": [0.5],
        "pixel_std": [0.25],
    }
    (folder / "lineage.json").write_text(json.dumps(lineage))
    (folder / "done.json").write_text(json.dumps(DONE | {"seconds": 90.0}))
    if steps:
        lines = [f"{s},{5 / s},{s / 9},0.1" for s in range(1, steps + 1, 10)]
        metrics = "\n".join(["step,loss,accuracy,learning_rate", *lines, ""])
        (folder / "metrics.csv").write_text(metrics)
    Image.new("RGB", (40, 48), "red").save(folder / "views.png")
    return stage_id


def write_neighbours(folder: Path, classes: list[str]) -> None:
    near = [{"image": "n", "classes": classes, "cosine": 0.5, "right": i < 3} for i in range(5)]
    queries = [{"image": "q", "classes": classes, "neighbours": near}] * 5
    (folder / "neighbours-0.json").write_text(json.dumps({"queries": queries}))
    Image.new("RGB", (48, 40), "blue").save(folder / "neighbours-0.png")


def write_workdir(root: Path, dataset: str = "folder:digits", seeds: tuple[int, ...] = (0, 1, 2)):
    """A study of three arms, T and B+T at two budgets, as a run would have left it."""
    runs = []
    for arm in ACCURACY:
        for seed in seeds:
            for steps in (0,) if arm == "B" else (50, 100):
                name = {"B": "statistics", "T": "scratch", "B+T": "target"}[arm]
                stage_id = write_stage(root, name, seed, steps, dataset)
                folder = root / "stages" / stage_id
                found = {
                    "val": value(arm, steps, seed) - 0.1,
                    "test": value(arm, steps, seed),
                    "labelled": [[0], [1], [2]],
                    "selected_by": "val",
                    "selections": [{"curve": [[10, 0.2], [20, 0.3]]}],
                }
                (folder / "evaluations/linear_sgd-0.json").write_text(json.dumps(found))
                write_neighbours(folder, [EVIL])
                runs.append({
                    "arm": arm,
                    "seed": seed,
                    "stage_id": stage_id,
                    "chain": [stage_id],
                    "pretrain_steps": steps,
                    "evaluations": {"linear_sgd": "evaluations/linear_sgd-0.json"},
                    "neighbours": "neighbours-0.json",
                })  # fmt: skip
    config = {"arms": {arm: [] for arm in ACCURACY}, "evaluations": ["linear_sgd"], "note": EVIL}
    plan = {
        "study": "digits",
        "config_id": "c0ffee",
        "config": config,
        "dataset": dataset,
        "metric": "top1",
        "runs": runs,
        "command": {
            "config": "my configs/x.py",
            "workdir": "runs/x",
            "overrides": [["seeds", "(0, 1)"]],
        },
    }
    (root / "plans").mkdir()
    (root / "plans" / "digits.json").write_text(json.dumps(plan))
    return plan


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write_workdir(root)
    return root


@pytest.fixture(scope="module")
def made(workdir: Path) -> Checked:
    return Checked(page.write(workdir, results.collect(workdir), "digits").read_text())


def test_what_each_arm_is_stands_with_the_results(tmp_path: Path) -> None:
    plan = write_workdir(tmp_path, seeds=(0,))
    plan["runs"] = [run for run in plan["runs"] if run["arm"] != "B+T"]
    (tmp_path / "plans" / "digits.json").write_text(json.dumps(plan))
    words = Checked(page.write(tmp_path, results.collect(tmp_path)).read_text()).words
    for arm, text in (
        ("B", "random weights, then its batch norm's statistics of folder:digits"),
        ("T", "random weights, then trained on folder:digits"),
    ):
        assert f" {arm} {text} " in words


def test_arms_that_words_cannot_tell_apart_are_not_told(made: Checked) -> None:
    """Of T and B+T the same stages stand here."""
    assert "random weights, then" not in made.words


def test_the_page_asks_for_nothing_outside_itself(made: Checked) -> None:
    tags = {tag for tag, _ in made.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert {"img", "svg", "table"} <= tags
    for _, attributes in made.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            assert re.match(r"data:image/(png|webp);base64,|#", attributes.get(name) or "#")
        assert not any(name.startswith("on") for name in attributes)
        assert "url(h" not in (attributes.get("style") or "")


def test_every_reference_inside_the_page_has_its_only_target(made: Checked) -> None:
    ids = [attributes["id"] for _, attributes in made.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {
        found[1:]
        for _, attributes in made.elements
        for name in ("href", "xlink:href")
        if (found := attributes.get(name) or "").startswith("#")
    }
    for _, attributes in made.elements:
        for text in (attributes.get("clip-path") or "", attributes.get("style") or ""):
            wanted |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert wanted
    assert wanted <= set(ids)


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    write_workdir(tmp_path, dataset=f"folder:{EVIL}", seeds=(0,))
    made = Checked(page.write(tmp_path, results.collect(tmp_path)).read_text())
    assert "script" not in {tag for tag, _ in made.elements}
    assert made.words.count(EVIL) > 30  # classes, the dataset's name, the config


def test_tables_hold_what_numpy_and_scipy_find(made: Checked) -> None:
    from scipy import stats

    for arm, steps in (("B", 0), ("T", 50), ("T", 100), ("B+T", 50), ("B+T", 100)):
        test = [100 * value(arm, steps, seed) for seed in (0, 1, 2)]
        low, high = stats.ttest_1samp(test, 0).confidence_interval(0.95)
        mean, std = np.mean(test), np.std(test, ddof=1)
        row = f"{arm} {steps} {mean:.1f} ± {std:.1f} {low:.1f} to {high:.1f} 3 {mean - 10:.1f}"
        assert row in made.words
    bold = [attributes for tag, attributes in made.elements if attributes.get("class") == "best"]
    assert len(bold) == 2
    assert "Best on validation: B+T after 100 steps on the target, 72.0 ± 1.0 %" in made.words


def test_claims_of_an_analysis_stand_with_their_intervals(tmp_path: Path) -> None:
    plan = write_workdir(tmp_path)
    plan["config"]["analysis"] = "separability"
    (tmp_path / "plans" / "digits.json").write_text(json.dumps(plan))
    made = Checked(page.write(tmp_path, results.collect(tmp_path)).read_text())
    assert "B+T after 100 - T after 100 +10.0 +10.0 to +10.0 3 holds" in made.words
    assert "T after 100 T 100 +0.0 +0.0 to +0.0" in made.words  # of its own best
    assert "T after 100 B+T 50 +9.5 +9.5 to +9.5" in made.words


def test_an_unfinished_study_claims_nothing(tmp_path: Path) -> None:
    plan = write_workdir(tmp_path)
    plan["config"]["analysis"] = "separability"
    (tmp_path / "plans" / "digits.json").write_text(json.dumps(plan))
    stage = tmp_path / "stages" / plan["runs"][-1]["stage_id"]
    (stage / "evaluations/linear_sgd-0.json").unlink()
    made = Checked(page.write(tmp_path, results.collect(tmp_path)).read_text())
    assert "Results" in made.words
    assert "claims" not in made.words


def test_the_page_names_the_best_on_validation_though_another_is_better_on_test() -> None:
    scores = {"T": {"val": 0.6, "test": 0.9}, "B+T": {"val": 0.7, "test": 0.5}}
    rows = [
        tables.ResultRow("s", arm, arm, "d", 10, "linear", "top1", split, score, 0, "val", "c")
        for arm, splits in scores.items()
        for split, score in splits.items()
    ]
    finding = page._finding(rows, ["linear"])
    assert [(one.arm, one.mean) for one in finding["best"]] == [("B+T", 0.5)]


def test_subsets_command_data_and_times_are_told(made: Checked) -> None:
    for text in (
        "mean over 3 subsets of labels",
        "python -m hpt_jax.main --config 'my configs/x.py' --workdir runs/x "
        "'--config.seeds=(0, 1)'",
        "images 1,234",
        "test (3)",
        "16-bit window 3 to 900",
        "jax 9.9",
        "15 stages, 22.5 min of training",
    ):
        assert text in made.words, text


def test_neighbours_are_of_the_base_and_of_the_longest_chain(made: Checked) -> None:
    assert "B, no step on the target" in made.words
    assert "B+T, 100 steps on the target" in made.words
    classes = [attributes.get("class") for tag, attributes in made.elements if tag == "div"]
    assert [classes.count(name) for name in ("query", "right", "wrong")] == [10, 30, 20]


def test_figures_lie_beside_the_page_as_png_and_svg(workdir: Path, made: Checked) -> None:
    for name in ("accuracy_against_steps", "training_curves", "probe_curves"):
        for suffix in ("png", "svg"):
            path = workdir / "report" / f"digits_{name}.{suffix}"
            assert path.stat().st_size > 5000
            assert suffix == "svg" or path.name in made.words


def test_the_same_results_give_the_same_page(workdir: Path, made: Checked) -> None:
    first = (workdir / "report/index.html").read_bytes()
    assert page.write(workdir, results.collect(workdir)).read_bytes() == first


SMALL = ("neighbours-0.png", "views.png", "metrics.csv", "done.json")


@pytest.mark.parametrize(
    ("absent", "still_told"),
    [
        (["plans"], "No study has been asked for yet"),
        (["stages"], "No evaluation is finished yet"),
        (["stages/*/evaluations/*"], "No evaluation is finished yet"),
        ([f"stages/*/{name}" for name in SMALL], "B+T 100 71.0"),
        (["stages/target-*/lineage.json"], "B+T 100 71.0"),
        (["stages/target-*"], "T 100 61.0"),
    ],
    ids=str,
)
def test_what_is_missing_leaves_the_rest(
    tmp_path: Path, absent: list[str], still_told: str
) -> None:
    write_workdir(tmp_path, seeds=(0,))
    found = [path for pattern in absent for path in tmp_path.glob(pattern)]
    assert found
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert still_told in Checked(page.write(tmp_path, results.collect(tmp_path)).read_text()).words


def test_a_plan_of_an_earlier_version_still_has_a_page(tmp_path: Path) -> None:
    plan = write_workdir(tmp_path, seeds=(0,))
    del plan["command"]
    for run in plan["runs"]:
        del run["neighbours"]
    (tmp_path / "plans/digits.json").write_text(json.dumps(plan))
    made = Checked(page.write(tmp_path, results.collect(tmp_path)).read_text())
    assert "No command is recorded" in made.words
    assert "one seed" in made.words
    assert "B 0 50.0 - 1 40.0" in made.words


def test_choices_stand_with_their_reasons_as_text(tmp_path: Path) -> None:
    plan = write_workdir(tmp_path, seeds=(0,))
    assert "chosen, and why" not in read_page(tmp_path).words
    plan["choices"] = [
        {"field": "batch_size", "value": "64", "reason": f"1,234 images {EVIL}"},
        {"field": "augment.crop_scale", "value": "(0.2, 1.0)", "reason": "no more than half"},
    ]
    (tmp_path / "plans/digits.json").write_text(json.dumps(plan))
    made = read_page(tmp_path)
    assert f"batch_size 64 1,234 images {EVIL}" in made.words
    assert "augment.crop_scale (0.2, 1.0) no more than half" in made.words
    assert "script" not in {tag for tag, _ in made.elements}


def read_page(root: Path) -> Checked:
    return Checked(page.write(root, results.collect(root)).read_text())


def test_the_study_just_run_comes_first(tmp_path: Path) -> None:
    plan = write_workdir(tmp_path, seeds=(0,))
    for name in ("a_study", "z_study"):
        (tmp_path / "plans" / f"{name}.json").write_text(json.dumps(plan | {"study": name}))
    words = Checked(page.write(tmp_path, results.collect(tmp_path), "z_study").read_text()).words
    assert re.search(r"z_study , a_study , digits", words)


def stage(name: str, seed: int = 0, steps: int = 10) -> dict[str, object]:
    return {"name": name, "dataset": "folder:x/y", "how": "", "steps": steps, "seed": seed}


def test_the_graph_has_one_box_a_stage_and_no_two_overlap() -> None:
    chains = {
        "random": ["random"],
        "B": ["base", "statistics"],
        "S": ["source"],
        "B+S": ["base", "source"],
        "T": ["target"],
        "B+T": ["base", "target"],
        "B+S+T": ["base", "source", "target"],
        "HPT-BN": ["base", "bn"],
    }
    runs = [
        (arm, [stage(name, seed, steps) for name in names])
        for arm, names in chains.items()
        for seed in (0, 1, 2)
        for steps in (50, 5000)
    ]
    drawn = graph.layout(runs)
    prefixes = {tuple(names[: i + 1]) for names in chains.values() for i in range(len(names))}
    stages = [box for box in drawn.boxes if not box.is_arm]
    arms = [box for box in drawn.boxes if box.is_arm]
    assert sorted(box.title for box in stages) == sorted(prefix[-1] for prefix in prefixes)
    assert [box.title for box in arms].sort() == list(chains).sort()
    assert len(drawn.arrows) == len(prefixes) - len({p[0] for p in prefixes}) + len(chains)
    assert all("y · 50, 5k steps · 3 seeds" in box.full for box in stages)
    for i, one in enumerate(drawn.boxes):
        assert 0 <= one.x <= drawn.width - graph.WIDTH
        assert 0 <= one.y <= drawn.height - graph.HEIGHT
        for other in drawn.boxes[:i]:
            apart = abs(one.x - other.x) >= graph.WIDTH or abs(one.y - other.y) >= graph.HEIGHT
            assert apart, (one, other)
    corners = {(box.x, box.y + graph.HEIGHT / 2) for box in drawn.boxes}
    assert {arrow[2:] for arrow in drawn.arrows} <= corners


@pytest.mark.parametrize(
    ("lengths", "files"), [((100,), ["arms"]), ((50, 100), ["accuracy_against_steps"])]
)
def test_arms_of_one_length_are_bars_and_of_several_are_curves(
    lengths: tuple[int, ...], files: list[str]
) -> None:
    places = [("B", 0), *(("B+T", steps) for steps in lengths)]
    rows = [
        tables.ResultRow("x", arm, "", "folder:x", steps, "knn", "top1", "test", 0.5, 0, "val", "0")
        for arm, steps in places
    ]
    found = page.headlines("", rows, ["B", "B+T"], ["knn"])
    assert [name for name, _, _ in found] == files
