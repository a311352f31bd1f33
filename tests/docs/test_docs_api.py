"""docs/api/ says what the docstrings say."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "docs" / "api"
PACKAGE = HERE.parents[1] / "hpt_jax"
_SPEC = importlib.util.spec_from_file_location("build_api", HERE / "build.py")
assert _SPEC is not None
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)
MODULES = [name for names in build.MODULES.values() for name in names]


def test_the_pages_are_what_the_docstrings_give():
    made = build.pages()
    written = {path.name: path.read_text("utf-8") for path in HERE.glob("*.md")}
    assert written.keys() == made.keys()
    stale = [name for name, content in made.items() if written[name] != content]
    assert not stale, f"python docs/api/build.py writes {stale} anew"


@pytest.mark.parametrize("module", MODULES)
def test_each_public_function_and_argument_is_on_its_page(module):
    """By Python's own parser, which the pages are not made with."""
    page = next(part for part, names in build.MODULES.items() if module in names)
    text = (HERE / f"{page.lower()}.md").read_text("utf-8")
    own = text.split(f"\n## hpt_jax.{module}\n")[1].split("\n## ")[0]
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        assert f"\n### `{node.name}`\n" in own, node.name
        body = own.split(f"\n### `{node.name}`\n")[1].split("\n### ")[0]
        signature = body.split("```")[1]
        names = [argument.arg for argument in node.args.args]
        assert all(f"{name}:" in signature for name in names), node.name
        docstring = ast.get_docstring(node) or ""
        if "\nArgs:\n" in docstring:
            assert all(f"\n- `{name}`: " in body for name in names), node.name
        for section, told in (("Returns", "\nReturns: "), ("Raises", "\n- raises `")):
            assert (f"\n{section}:\n" in docstring) == (told in body), node.name
