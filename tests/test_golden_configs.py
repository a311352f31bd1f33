"""No hyper-parameter of a shipped config changes unnoticed."""

import dataclasses
import difflib

import pytest
from golden_configs import make

COMMAND = "python tests/golden_configs/make.py"


def difference(found, expected):
    """What a reader sees of two dicts of files: each file's name, and the lines that differ."""
    lines = []
    for name in found | expected:
        lines += difflib.unified_diff(
            expected.get(name, "").splitlines(),
            found.get(name, "").splitlines(),
            f"tests/golden_configs/{name}" + (" (no such file)" if name not in expected else ""),
            "now" if name in found else "now (no such config)",
            n=0,
            lineterm="",
        )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def now():
    return make.make()


def test_every_shipped_config_means_what_its_golden_file_says(now):
    changed = difference(now, make.stored())
    if changed:
        pytest.fail(
            f"What shipped configs mean has changed. If that is intended: {COMMAND}\n\n{changed}",
            pytrace=False,
        )


def value_of(files, name, variant, path):
    """A config's value as a reader finds it: its own, else that of what it starts from."""
    in_stage = path.partition("stages.")[2].partition(".")[2]
    paths = [path, f"shared.{in_stage}"] if in_stage else [path]
    starts = [name, "studies/separability"] if name.startswith("hpt/") else [name]
    for one in paths:
        found = [files[start].get(f"{variant}{one}") for start in starts]
        value = next((value for value in found if value), make.ABSENT)
        if value != make.ABSENT:
            return value
    return files["defaults"][paths[-1]]


def leaves(value, path=()):
    if not isinstance(value, dict):
        return [(".".join(path), value)]
    return [leaf for name, one in value.items() for leaf in leaves(one, (*path, name))]


def test_the_files_together_tell_every_value_of_a_config(now):
    files = {
        name.removesuffix(".txt"): dict(line.split(" = ", 1) for line in text.splitlines())
        for name, text in now.items()
    }
    for name in files.keys() - {"defaults", "constants"}:
        for variant, config in make.resolved(name).items():
            for path, value in leaves(dataclasses.asdict(config)):
                where = (name, variant, path)
                assert value_of(files, *where) == repr(value), where


def test_a_changed_value_shows_as_two_lines_with_its_path():
    golden = make.stored()
    line = "stages.base.optimizer.learning_rate = 0.06"
    changed = {**golden, "quickstart.txt": golden["quickstart.txt"].replace(line, line + "5")}
    shown = [one for one in difference(changed, golden).splitlines() if "@@" not in one]
    assert shown == ["--- tests/golden_configs/quickstart.txt", "+++ now", f"-{line}", f"+{line}5"]


def test_a_config_without_a_golden_file_and_a_file_without_a_config_show():
    golden = make.stored()
    others = {name: text for name, text in golden.items() if name != "quickstart.txt"}
    new, gone = difference(golden, others), difference(others, golden)
    assert new.startswith("--- tests/golden_configs/quickstart.txt (no such file)\n+++ now\n")
    assert gone.startswith("--- tests/golden_configs/quickstart.txt\n+++ now (no such config)\n")
    assert "\n+name = 'quickstart'" in new
    assert "\n-name = 'quickstart'" in gone
