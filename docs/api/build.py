"""Writes the other files of docs/api/ from the docstrings of the package.

    python docs/api/build.py

Reads the source by griffe and runs none of it. Public is what has no underscore in front and stands
in the module that is listed; a field that has no docstring is told by the comment beside it.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import griffe

HERE = Path(__file__).parent
# Page -> its modules, in the order in which a reader may need them.
MODULES: dict[str, tuple[str, ...]] = {
    "Running": ("run", "config", "errors", "plan", "workdir", "main"),
    "Results": ("report.results", "report.tables", "report.claims", "report.page"),
    "Weights": ("weights.load", "weights.export", "weights.verify", "models.backbone"),
    "Data": (
        "data.datasets",
        "data.images",
        "data.packages",
        "data.decode",
        "data.dicom",
        "data.survey",
        "augment.policies",
        "augment.views",
    ),
    "Training": ("moco", "bn_statistics", "training", "pretrain", "parallel", "checkpoints"),
    "Scale": (
        "processes",
        "share",
        "lease",
        "jobs",
        "remote",
        "mirror",
        "forecast.chips",
        "forecast.rows",
    ),
    "Networks": ("models.resnet", "models.batch_norm", "models.heads"),
    "Evaluation": (
        "evaluate.evaluations",
        "evaluate.subject",
        "evaluate.features",
        "evaluate.knn",
        "evaluate.linear",
        "evaluate.linear_sgd",
        "evaluate.finetune",
        "evaluate.metrics",
    ),
}
INTRODUCTION = """\
# API

What the modules offer to other Python code, made from their docstrings by
`python docs/api/build.py`
and held to them by a test. Most need three functions alone: `config.default_config`, `run.run` and
`report.tables.read_results` ([howto/results.md](../howto/results.md)).
"""


def pages() -> dict[str, str]:
    """File -> its content."""
    package = griffe.load("hpt_jax", search_paths=[HERE.parents[1]], docstring_parser="google")
    made, index = {}, [INTRODUCTION]
    for part, names in MODULES.items():
        file = f"{part.lower()}.md"
        index += [f"\n## [{part}]({file})\n"]
        for name in names:
            heading = f"hpt_jax.{name}"
            summary = _text(package[name]).partition("\n\n")[0]
            index.append(f"- [`{name}`]({file}#{_anchor(heading)}): {_joined(summary)}")
        lines = [f"# API: {part.lower()}", "", "Made by `build.py`; [all modules](README.md)."]
        lines += [line for name in names for line in _module(package[name])]
        made[file] = "\n".join(lines) + "\n"
    return {"README.md": "\n".join(index) + "\n", **made}


def _anchor(heading: str) -> str:
    """What GitHub calls a heading in a link."""
    return heading.lower().replace(".", "").replace(" ", "-")


def _module(module: griffe.Module) -> Iterator[str]:
    yield from ("", f"## {module.path}", "")
    yield _text(module)
    for one in _public(module):
        if isinstance(one, griffe.Class):
            yield from _class(one)
        elif isinstance(one, griffe.Function):
            yield from _function(one, f"### `{one.name}`")
    values = [one for one in _public(module) if isinstance(one, griffe.Attribute)]
    if values:
        yield ""
        yield "Constants: " + ", ".join(f"`{one.name}`" for one in values) + "."


def _public(parent: griffe.Module | griffe.Class) -> Iterator[griffe.Object]:
    for name, member in parent.members.items():
        if not name.startswith("_") and not member.is_alias:
            yield member


def _class(one: griffe.Class) -> Iterator[str]:
    bases = ", ".join(str(base) for base in one.bases)
    yield from ("", f"### class `{one.name}`" + (f" ({bases})" if bases else ""), "", _text(one))
    told = {
        item.name: _joined(item.description)
        for section in _sections(one)
        if section.kind.value in ("attributes", "parameters")
        for item in section.value
    }
    fields = [m for m in _public(one) if isinstance(m, griffe.Attribute) and m.annotation]
    comments = _comments(one.filepath)
    if fields:
        yield ""
    for field in fields:
        if "property" in field.labels:
            text = _text(field)
        else:
            text = told.pop(field.name, "") or comments.get(field.lineno or 0, "")
        default = f" = {field.value}" if field.value is not None else ""
        yield f"- `{field.name}: {field.annotation}{default}`" + (f": {text}" if text else "")
    for name, text in told.items():
        yield f"- `{name}`: {text}"
    yield from _raises(one)
    for method in _public(one):
        if isinstance(method, griffe.Function):
            yield from _function(method, f"#### `{one.name}.{method.name}`")


def _function(one: griffe.Function, heading: str) -> Iterator[str]:
    yield from ("", heading, "", "```python", _signature(one), "```", "", _text(one))
    for section in _sections(one):
        if section.kind.value == "parameters":
            yield ""
            for item in section.value:
                yield f"- `{item.name}`: {_joined(item.description)}"
        elif section.kind.value in ("returns", "yields"):
            text = " ".join(_joined(item.description) for item in section.value)
            yield from ("", f"{section.kind.value.capitalize()}: {text}")
    yield from _raises(one)


def _raises(one: griffe.Object) -> Iterator[str]:
    for section in _sections(one):
        if section.kind.value == "raises":
            yield ""
            for item in section.value:
                yield f"- raises `{item.annotation}`: {_joined(item.description)}"


def _signature(one: griffe.Function) -> str:
    text = f"{one.name}{one.signature().removeprefix(one.name)}".replace("self, ", "", 1)
    text = text.replace("(self)", "()")
    if len(text) <= 88:
        return text
    tree = ast.parse(f"def {text}: ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    parts = [ast.unparse(ast.arguments([], [a], None, [], [], None, [])) for a in tree.args.args]
    defaults = [ast.unparse(value) for value in tree.args.defaults]
    first = len(parts) - len(defaults)
    parts[first:] = [f"{p} = {d}" for p, d in zip(parts[first:], defaults, strict=True)]
    ends = f") -> {ast.unparse(tree.returns)}" if tree.returns else ")"
    return "\n".join([f"{one.name}(", *(f"    {part}," for part in parts), ends])


def _sections(one: griffe.Object) -> list[griffe.DocstringSection]:
    if one.docstring is None:
        return []
    # Both options: what stands before a colon in Returns is prose here, not a name or a type.
    return one.docstring.parse(
        "google", returns_named_value=False, returns_multiple_items=False, warnings=False
    )


def _text(one: griffe.Object) -> str:
    texts = [section.value for section in _sections(one) if section.kind.value == "text"]
    return _escaped("\n\n".join(inspect.cleandoc(text) for text in texts))


def _joined(text: str) -> str:
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    """Text of which Markdown takes nothing outside code for HTML."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _comments(path: Path) -> dict[int, str]:
    """Line -> the comment at its end, with those that go on below it."""
    found: dict[int, str] = {}
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            text = token.string.lstrip("# ")
            if token.line[:column].strip():
                found[row] = text
                last = row
            elif last in found and row == last + found[last].count("\n") + 1:
                found[last] += f"\n{text}"
    return {row: _joined(text) for row, text in found.items()}


if __name__ == "__main__":
    for name, content in pages().items():
        (HERE / name).write_text(content, encoding="utf-8")
