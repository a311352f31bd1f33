"""Names and files that others made: they run nothing, lead nowhere and move no cursor."""

from __future__ import annotations

import ast
import collections
import contextlib
import html.parser
import io
import json
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import hpt_jax
from hpt_jax.data import labels_csv
from hpt_jax.errors import UserError, printable
from hpt_jax.main import main
from hpt_jax.models.backbone import init_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.report import page, results, tables
from hpt_jax.weights.__main__ import main as weights_command
from hpt_jax.weights.export import export_backbone
from hpt_jax.workdir import read_json

PACKAGE = Path(hpt_jax.__file__).parent
BYTES = os.fsdecode(b"\xff\xfe")  # no UTF-8
NAMES = (
    "<script>alert(1)",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "{{7*7}}{% raw %}",
    "javascript:alert(1)",
    "..",
    "--><b>&lt;",
    "new\nline\rback",
    "\x1b[2J\x1b[31m\x07\x9b",
    "\u202ertl\u2066",
    BYTES,
)
ALL = " ".join(NAMES)
TEXT = ALL.replace(BYTES, "")
CONFIG = """
from support import tiny_config

def get_config():
    config = tiny_config({root!r})
    config.domain = {name!r}
    config.input.pipeline = "host"  # for the sake of scans/
    config.stages.base = dict(trainable="nothing", init={init!r})
    config.stages.target = dict(dataset={dataset!r}, steps=2)
    config.arms.update({{"B": ("base",), "T": ("target",)}})
    config.target = {dataset!r}
    config.evaluations = ("knn",)
    config.export = "T"
    return config
"""
# What matplotlib writes.
DRAWN = {
    "svg": {"viewbox", "style"}, "defs": set(), "style": {"type"}, "clippath": {"id"},
    "g": {"id", "clip-path", "style", "transform"}, "rect": {"x", "y", "width", "height"},
    "path": {"id", "d", "style", "clip-path", "transform"},
    "use": {"xlink:href", "x", "y", "style", "transform"},
}  # fmt: skip


class Elements(html.parser.HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.attributes: defaultdict[str, set[str]] = defaultdict(set)
        self.values: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes[tag] |= {name for name, _ in attrs}
        self.values += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(path: Path) -> Elements:
    """Whether a page has only elements and attributes of the template and of drawings."""
    template = re.sub(r"{{.*?}}|{%.*?%}", "", (PACKAGE / "report" / "page.html").read_text())
    ours, found = Elements(template).attributes, Elements(path.read_text(encoding="utf-8"))
    for tag, names in found.attributes.items():
        assert names <= ours.get(tag, set()) | DRAWN.get(tag, set()), (tag, names)
        assert tag in ours or tag in DRAWN
    for name, value in found.values:
        assert name not in ("href", "xlink:href") or value.startswith("#"), value
        assert name != "src" or re.match("data:image/(png|webp);base64,", value)
        assert name != "style" or re.fullmatch(r"[\w\s:;,.#()%-]*", value), value
    return found


def check_terminal(text: str) -> None:
    assert text
    bad = {letter for letter in text if not (letter.isprintable() or letter == "\n")}
    assert not bad


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in NAMES:
        under = folder / f"class {name}"
        under.mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(under / f"{index} {name}.png")


def write_weights(folder: Path, **told: Any) -> None:
    model = ResNet("two_blocks", 4, "small", 2)
    backbone = init_backbone(model, jax.random.key(0), np.zeros(3), np.ones(3))
    facts = {
        "arch": "two_blocks", "width": 4, "stem": "small", "stem_stride": 2, "channels": 3,
        "image_size": 16, "lineage": "x",
    }  # fmt: skip
    file = export_backbone(backbone, facts | told, folder)
    with safe_open(file, "numpy") as content:
        metadata = content.metadata()
    save_file({**load_file(file), f"fc {TEXT}": np.zeros(3, np.float32)}, file, metadata)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workdir made of hostile names alone, and what stood on the terminal."""
    root = tmp_path_factory.mktemp("hostile")
    folder = root / f"data {ALL}"
    write_images(folder / f"set {ALL}")
    write_weights(folder / f"weights {ALL}", lineage=ALL, stage_id=ALL)
    file = folder / f"weights {ALL}" / "backbone.safetensors"
    config = root / f"config {ALL}.py"
    text = CONFIG.format(root=str(folder), name=ALL, init=str(file), dataset=f"folder:set {ALL}")
    config.write_text(text)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main(["--config", str(config), "--workdir", str(root / f"w {TEXT}")]) == 0
    return root, told.getvalue()


def test_a_page_of_hostile_names_has_no_element_that_the_template_does_not_write(made) -> None:
    root, _ = made
    found = check_page(root / f"w {TEXT}" / "report" / "index.html")
    for name in NAMES[:-3]:  # the last are told in another way
        words = " ".join(found.text.split())
        assert " ".join(name.split()) in words, name
    titles = [value for name, value in found.values if name == "title"]
    for name in NAMES:
        shown = " ".join(name.replace(BYTES, r"\udcff\udcfe").split())
        assert any(f"class {shown}" in " ".join(value.split()) for value in titles), name


def test_hostile_names_move_no_cursor(made) -> None:
    _, told = made
    check_terminal(told)
    assert "\\x1b[2J" in told
    assert "\\u202e" in told
    assert "\\xff\\xfe" in told


def test_hostile_names_come_back_from_results_csv(made) -> None:
    root, _ = made
    rows = tables.read_results(root / f"w {TEXT}" / "results.csv")
    assert {row.dataset for row in rows} == {f"folder:set {ALL}"}


def test_all_that_a_run_on_hostile_names_writes_is_in_its_workdir(made) -> None:
    root, _ = made
    mine = {f"data {ALL}", f"config {ALL}.py", f"w {TEXT}"}
    assert {path.name for path in root.iterdir()} == mine
    assert {path.name for path in (root / f"data {ALL}").iterdir()} == {
        f"set {ALL}", f"weights {ALL}"
    }  # fmt: skip


def test_a_card_of_hostile_names_is_no_html(made) -> None:
    root, _ = made
    text = (root / f"w {TEXT}" / "export" / "card.md").read_text()
    assert "alert(1)" in text
    assert "<" not in text
    check_terminal(text)


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "", "a\0b", *NAMES, "x" * 300])
def test_a_name_that_could_lead_elsewhere_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {
        "name": f"config.name = {name!r}",
        "stages": f"config.stages = {{{name!r}: dict(dataset='folder:x', steps=1)}}",
        "arms": f"config.arms = {{{name!r}: ('t',)}}",
    }
    for field, line in lines.items():
        text = f"""
from hpt_jax.config import default_config
def get_config():
    config = default_config()
    config.stages.t = dict(dataset="folder:x", steps=1)
    config.arms.T = ("t",)
    {line}
    return config
"""
        (tmp_path / "c.py").write_text(text)
        assert main(["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w")]) == 2
        told = capsys.readouterr().err
        assert field in told or "does not accept dots in field names" in told
        check_terminal(told)
        assert [path.name for path in tmp_path.iterdir()] == ["c.py"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, os.fsdecode(b"\xff")])
def test_a_workdir_that_cannot_be_one_is_refused(
    made: tuple[Path, str], name: str, tmp_path: Path
) -> None:
    code, told = again(made, tmp_path / name)
    assert code == 2
    assert told.startswith("--workdir = ")
    assert len(told.splitlines()) == 1


# What stands in files of weights


def imported(source: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """What the import of a file tells; it leaves the folder `folder`/dst and nothing else."""
    flags = ["--arch", "two_blocks", "--width", "4"]
    code = weights_command(["import", str(source), str(folder / "dst"), *flags])
    told = capsys.readouterr()
    check_terminal(told.out + told.err)
    return code, told.out + told.err


def test_what_a_file_of_weights_says_of_itself_moves_no_cursor_and_is_no_html(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(tmp_path / "w", lineage=f"{ALL} ../../x", stage_id="../../x")
    before = files(tmp_path / "w")
    code, told = imported(tmp_path / "w" / "backbone.safetensors", tmp_path, capsys)
    assert code == 0, told
    assert "alert(1)" in told
    assert "<" not in (tmp_path / "dst" / "card.md").read_text()
    assert files(tmp_path / "w") == before
    assert {path.name for path in tmp_path.iterdir()} == {"w", "dst"}


def test_a_config_json_of_hostile_names_is_refused_by_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(tmp_path / "w")
    (tmp_path / "w" / "backbone.safetensors").rename(tmp_path / "w" / "model.safetensors")
    config = {"architecture": ALL, "model_args": {ALL: 1}, "pretrained_cfg": {ALL: [ALL]}}
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    code, told = imported(tmp_path / "w", tmp_path, capsys)
    assert code == 2
    assert "a plain ResNet, but config.json beside it says" in told
    assert not (tmp_path / "dst").exists()


@pytest.mark.torch
def test_what_a_torch_file_of_ours_says_of_itself_moves_no_cursor_and_is_no_html(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    write_weights(tmp_path / "w", lineage=f"{ALL} ../../x", stage_id="../../x")
    with safe_open(tmp_path / "w" / "backbone.safetensors", "pt") as content:
        names = list(content.keys())
        state = collections.OrderedDict((name, content.get_tensor(name)) for name in names)
        told_by_file = content.metadata()["hpt_jax"]
    state._metadata = {"hpt_jax": {"hpt_jax": told_by_file}}
    torch.save(state, tmp_path / "w" / "x.pth")
    code, told = imported(tmp_path / "w" / "x.pth", tmp_path, capsys)
    assert code == 0, told
    assert "dialect: hpt_jax" in told
    assert "alert(1)" in told
    assert "<" not in (tmp_path / "dst" / "card.md").read_text()


# What stands in a workdir from elsewhere


@pytest.fixture
def elsewhere(made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the workdir, to be changed."""
    shutil.copytree(made[0] / f"w {TEXT}", tmp_path / "a" / "b" / "w")
    return tmp_path / "a" / "b" / "w"


def plan_of(root: Path) -> tuple[Path, dict[str, Any]]:
    return root / "plans" / "tiny.json", read_json(root / "plans" / "tiny.json")


@pytest.mark.parametrize("outside", ["../../../x", "/x", "../stages/x"])
@pytest.mark.parametrize("key", ["study", "stage_id", "chain", "evaluations", "neighbours", "arm"])
def test_a_tampered_plan_leads_nowhere(elsewhere: Path, key: str, outside: str) -> None:
    path, plan = plan_of(elsewhere)
    run_of = plan["runs"][-1]
    secret = json.loads((elsewhere / "stages" / run_of["stage_id"] / run_of["evaluations"]["knn"])
                        .read_text()) | {"test": 0.123}  # fmt: skip
    above = elsewhere.parent.parent
    for place in (above / "x", above / "x.json", elsewhere / "stages" / "x"):
        place.write_text(json.dumps(secret))
    if key == "study":
        plan["study"] = outside
    elif key == "chain":
        run_of["chain"] = [outside]
    elif key == "evaluations":
        run_of["evaluations"] = {"knn": outside}
    else:
        run_of[key] = outside
    path.write_text(json.dumps(plan))
    before = files(above)
    told: list[str] = []
    rows = results.collect(elsewhere, told.append)
    assert rows == []
    assert "tiny.json is damaged" in told[0]
    page.write(elsewhere, rows)
    changed = {name for name, stamp in files(above).items() if before.get(name) != stamp}
    assert changed == {elsewhere / "report" / "index.html"}


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


def put(content: Any, value: Any) -> Any:
    """JSON with another value in place of every text that is no key and no name of a file."""
    if isinstance(content, dict):
        return {key: put(one, value) for key, one in content.items()}
    if isinstance(content, list):
        return [put(one, value) for one in content]
    return (
        value if isinstance(content, str) and content.startswith(("folder:", "base (")) else content
    )


def test_what_stands_in_the_files_of_a_workdir_is_text(elsewhere: Path) -> None:
    for name in ("plans/*.json", "stages/*/lineage.json", "stages/*/evaluations/*.json"):
        for path in elsewhere.glob(name):
            content = put(json.loads(path.read_text()), f"EVERYWHERE {ALL}")
            if "versions" in content:
                content["versions"] = {ALL: ALL}
                content["weights"] = {"matched": 1, "expected": 1, "dialect": ALL, "notes": [ALL]}
            if "command" in content:
                content["command"] = {"config": ALL, "workdir": ALL, "overrides": [[ALL, ALL]]}
            path.write_text(json.dumps(content))
    rows = results.collect(elsewhere)
    assert rows
    tables.write_results(elsewhere / "results.csv", rows)
    found = check_page(page.write(elsewhere, tables.read_results(elsewhere / "results.csv")))
    assert found.text.count("EVERYWHERE") > 5
    path, plan = plan_of(elsewhere)
    path.write_text(json.dumps(plan | {"dataset": "\ud800"}))  # no text at all
    assert results.collect(elsewhere) == []


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_is_kept(
    made: tuple[Path, str], elsewhere: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("precious")
    stage = next((elsewhere / "stages").glob("target-*"))
    (stage / "done.json").unlink()
    (stage / "lock").unlink()
    (stage / "lock").symlink_to(tmp_path / "mine")
    code, told = again(made, elsewhere)
    assert code == 2
    assert str(stage / "lock") in told
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_table_of_labels_leads_nowhere(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    there = frozenset(["a.png", "b.png"])
    for name in ("../x.png", str(tmp_path / "x.png"), "a.png/../../x.png", "./a.png", ALL):
        cell = '"' + name.replace('"', '""') + '"'
        table = f'image,"{ALL.replace(chr(34), chr(34) * 2)}"\na.png,1\n{cell},1\n'
        content = table.encode("utf-8", "surrogateescape").replace(b"\xff\xfe", b"")
        with pytest.raises(UserError, match="not found") as raised:
            labels_csv.read(content, "labels.csv", there)
        check_terminal(str(raised.value))


# Damaged small files

# Below a stage, and in the workdir; and what makes each again: all of them, but the plan of
# another study.
SMALL = ("lineage.json", "done.json", "evaluations/*.json", "neighbours-*.json",
         "neighbours-*.png", "views.png", "lock", "parameters.txt")  # fmt: skip
TOP = ("plans/*.json", "scans/*.npz", "results.csv", "report/index.html", "report/*.svg")


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "folder":
        path.unlink()
        path.mkdir()
        return
    changed = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "random": np.random.default_rng(0).bytes(max(64, len(content))),
        "list": b"[]",
        "null": b"null",
        "keys": b"{}",
        "deep": b"[" * 100_000,
        "text": b'{"runs": "x", "val": "1", "config": [], "steps": 1e999, "queries": [[]]}',
    }
    path.write_bytes(changed[how])


def again(made: tuple[Path, str], workdir: Path, *flags: str) -> tuple[int, str]:
    """The same command on a copy of its workdir; its exit code, and what it told."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        config = str(made[0] / f"config {ALL}.py")
        code = main(["--config", config, "--workdir", str(workdir), *flags])
    check_terminal(out.getvalue())
    return code, out.getvalue()


def results_of(workdir: Path) -> list[str]:
    return (workdir / "results.csv").read_text(errors="surrogateescape").splitlines()


@pytest.mark.parametrize("how", ["cut", "random"])
def test_damaged_small_files_are_made_again(
    made: tuple[Path, str], elsewhere: Path, how: str
) -> None:
    before = results_of(elsewhere)
    other, plan = plan_of(elsewhere)
    other.with_name("other.json").write_text(json.dumps(plan | {"study": "other"}))
    for name in [*TOP, *(f"stages/*/{one}" for one in SMALL)]:
        for path in list(elsewhere.glob(name)):
            damage(path, how)
    code, told = again(made, elsewhere)
    assert code == 0, told
    assert results_of(elsewhere) == before
    assert "other.json is damaged, and its study left out" in told
    (elsewhere / "plans" / "other.json").unlink()
    code, told = again(made, elsewhere)
    assert code == 0
    assert [line for line in told.splitlines() if line.startswith("note:")] == [
        f"note: {path} is damaged, and left out of the report"
        for path in elsewhere.glob("stages/target-*/views.png")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["empty", "list", "null", "keys", "deep", "text"])
def test_small_files_damaged_in_other_ways_are_made_again(
    made: tuple[Path, str], elsewhere: Path, how: str
) -> None:
    test_damaged_small_files_are_made_again(made, elsewhere, how)


FOLDERS = [
    ("stages/target-*/evaluations/*.json", 2),
    ("stages/target-*/neighbours-*.png", 2),
    ("report/tiny_health_*.svg", 2),
    ("stages/target-*/metrics.csv", 0),
]
MORE_FOLDERS = [
    ("stages/target-*/lineage.json", 2),
    ("stages/target-*/done.json", 2),
    ("stages/target-*/neighbours-*.json", 2),
    ("stages/target-*/views.png", 0),
    ("stages/target-*/lock", 0),
    ("plans/tiny.json", 2),
    ("results.csv", 2),
    ("report/index.html", 2),
    ("export/card.md", 2),
    ("scans/*.npz", 2),
]


@pytest.mark.parametrize(
    ("name", "code"),
    [*FOLDERS, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE_FOLDERS)],
)
def test_a_folder_in_place_of_a_small_file_is_named(
    made: tuple[Path, str], elsewhere: Path, name: str, code: int
) -> None:
    if name.startswith("scans"):  # which are read where something is left to do
        next(elsewhere.glob("stages/target-*/evaluations/*.json")).unlink()
    paths = list(elsewhere.glob(name))
    assert paths
    for path in paths:
        damage(path, "folder")
    got, told = again(made, elsewhere)
    assert got == code, told
    if code:
        line = told.splitlines()[-1]
        assert any(line.startswith(f"{printable(str(path))}: expected a file") for path in paths)
        for path in paths:
            path.rmdir()
        assert again(made, elsewhere)[0] == 0


def test_an_unfinished_stage_with_damaged_files_goes_on(
    made: tuple[Path, str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lineage, pictures and lock are made again; damaged metrics are told, with the fix."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    before = results_of(elsewhere)
    stage = next((elsewhere / "stages").glob("target-*"))
    (stage / "done.json").unlink()
    for path in [*stage.glob("evaluations/*.json"), stage / "lock", stage / "metrics.csv"]:
        damage(path, "random")
    (elsewhere / "compilation_cache").write_text("")
    code, told = again(made, elsewhere)
    assert code == 2
    assert told.splitlines()[-1].startswith(f"{elsewhere / 'compilation_cache'}: expected a folder")
    (elsewhere / "compilation_cache").unlink()
    code, told = again(made, elsewhere)
    assert code == 2
    assert told.splitlines()[-1].startswith(f"{stage / 'metrics.csv'}: expected rows of numbers")
    assert "Delete it" in told
    (stage / "metrics.csv").unlink()
    assert again(made, elsewhere)[0] == 0
    assert results_of(elsewhere) == before


@pytest.mark.parametrize("damaged", [False, True])
def test_a_stage_that_is_its_weights_is_finished_again(
    made: tuple[Path, str], elsewhere: Path, damaged: bool
) -> None:
    """A kill before done.json leaves a whole checkpoint; a disk may damage it later."""
    before = results_of(elsewhere)
    stage = next((elsewhere / "stages").glob("base-*"))
    (stage / "done.json").unlink()
    next(stage.glob("evaluations/*.json")).unlink()
    if damaged:
        path = max((stage / "checkpoints" / "0").rglob("d/*"), key=lambda one: one.stat().st_size)
        damage(path, "cut")
    code, told = again(made, elsewhere)
    assert code == 0, told
    assert ("damaged" in told.split("checkpoints/0: ")[-1][:10]) == damaged
    assert results_of(elsewhere) == before


# A static look at the code

LOADERS = ("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads",
           "shelve.open", "joblib.load", "yaml.load", "os.system", "os.popen", "builtins.eval",
           "builtins.exec", "builtins.__import__", "ast.unparse")  # fmt: skip
FORBIDDEN = ("dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml")


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """(dotted name, call) of each call of a module."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_code_runs_what_it_reads() -> None:
    ran = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {*FORBIDDEN}, path
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("pickle", "subprocess")
            if "subprocess" in names:
                ran.append((path.relative_to(PACKAGE).as_posix(), "subprocess"))
        for name, call in calls(tree):
            given = {one.arg: ast.unparse(one.value) for one in call.keywords}
            assert name not in LOADERS or (path.name, name) == ("measure.py", "pickle.load"), path
            assert given.get("allow_pickle") in (None, "False")
            assert given.get("shell") in (None, "False")
            if name == "torch.load":
                assert given["weights_only"] == "True", path
            if name.endswith("jinja2.Environment"):
                assert given["autoescape"] == "True"
            if name in ("eval", "exec", "compile", "__import__"):
                ran.append((path.relative_to(PACKAGE).as_posix(), name))
            if name.startswith("pickle."):
                ran.append((path.relative_to(PACKAGE).as_posix(), name))
    # A config file is a program; detectron2's format is a pickle, which is written and never read;
    # a job of a scheduler runs the command that was submitted; a forecast tells the process that
    # compiles what to compile, through a pipe.
    assert sorted(ran) == [
        ("config.py", "compile"),
        ("config.py", "exec"),
        ("forecast/measure.py", "pickle.dumps"),
        ("forecast/measure.py", "pickle.dumps"),
        ("forecast/measure.py", "pickle.load"),
        ("forecast/measure.py", "subprocess"),
        ("jobs.py", "subprocess"),
        ("weights/export.py", "pickle.dumps"),
    ]
    template = (PACKAGE / "report" / "page.html").read_text()
    assert re.findall(r"[\w.]+ *\| *safe", template) == ["figure.svg | safe"]
