"""The code blocks of README.md and docs/, and a sandbox in which they run as a reader's would.

A block is fenced and names its language. `sh` runs in bash. `python` is a file where its first line
is a comment with the file's name, and else runs as a program. `diff` changes a file of the sandbox.
All others are there to be read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
# But for docs/api/, whose blocks are signatures.
PAGES = (
    "README.md",
    "CHANGELOG.md",
    *sorted(
        str(path.relative_to(ROOT))
        for path in ROOT.glob("docs/**/*.md")
        if path.parent.name != "api"
    ),
)
LANGUAGES = ("sh", "python", "diff", "text", "csv", "yaml")
# What `python`, `pip` and `pytest` are in a sandbox: they note how they were called. `python` then
# runs, with what the test appends, unless the sandbox is dry or the test excuses the command.
_PROGRAM = """#!{python}
import json, os, sys
command = [{name!r}, *sys.argv[1:]]
with open({log!r}, "a") as file:
    file.write(json.dumps(command) + "\\n")
sys.path.insert(0, {here!r})
import commands
more = commands.more_of(command, {more!r})
if {name!r} == "python" and not ({dry} or commands.excuse_of(command, {excuses!r})):
    os.execv({python!r}, [{python!r}, *sys.argv[1:], *more])
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block: its page, first line (from 1), language ('' where it is indented) and text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block is, if its first line names one."""
        named = re.match(r"# ([\w/]+\.py)\n", self.text) if self.language == "python" else None
        return named[1] if named else None


def blocks(page: str) -> list[Block]:
    """All code blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, token.map[0] + 1, token.info.strip(), token.content)
        for token in MarkdownIt("commonmark").parse(text)
        if token.type in ("fence", "code_block") and token.map
    ]


def spans(page: str) -> list[str]:
    """The code spans of a page that are commands: those that begin with the name of a program."""
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text("utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    code = [child.content for child in inline if child.type == "code_inline"]
    return [one for one in code if re.match(r"(\w+=\w+ )?(python|pip|pytest) ", one)]


def excuse_of(command: Sequence[str], excuses: Mapping[str, str]) -> str | None:
    """The key of the excuse that a command has: the beginning that it shares with it."""
    text = shlex.join(command)
    return next((one for one in excuses if text == one or text.startswith(f"{one} ")), None)


def more_of(command: Sequence[str], more: Mapping[str, Sequence[str]]) -> list[str]:
    """What is appended to a command: all of what belongs to a word of it."""
    return [flag for word, flags in more.items() if word in command for flag in flags]


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """A folder to run a page's blocks in.

    Attributes:
      folder: made beforehand; holds what a clone of the repository would.
      placeholders: words in capitals, and what stands for them.
      excuses: beginnings of commands that are not run, and why.
      more: word of a command -> what is appended to a command that has it.
      dry: whether commands are noted only.
    """

    folder: Path
    placeholders: Mapping[str, str]
    excuses: Mapping[str, str]
    more: Mapping[str, Sequence[str]]
    dry: bool = False

    def run(self, block: Block) -> list[list[str]]:
        """Does what a block says, and returns the commands that it called.

        Raises:
          AssertionError: it fails; says how.
        """
        if block.language == "diff":
            self._patch(block.text)
        elif block.file:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._filled(block.text), encoding="utf-8")
        elif block.language == "python" and not self.dry:
            self._call(block, [sys.executable, "-c", self._filled(block.text)])
        elif block.language == "sh":
            # In a dry sandbox what a later command needs of an earlier one is not there.
            options = [] if self.dry else ["-euo", "pipefail"]
            return self._call(block, ["bash", *options, "-c", self._filled(block.text)])
        return []

    def _filled(self, text: str) -> str:
        for name, value in self.placeholders.items():
            text = re.sub(rf"(?<![\w$]){name}(?!\w)", value, text)
        return text

    def _patch(self, text: str) -> None:
        """Replaces, in each file, the lines that are taken away by those that are put there."""
        for part in re.split(r"^(?=--- )", text, flags=re.MULTILINE)[1:]:
            _, name, *lines = part.splitlines(keepends=True)
            path = self.folder / name.split()[1]
            for hunk in re.split(r"^@@.*\n", "".join(lines), flags=re.MULTILINE)[1:]:
                rows = hunk.splitlines(keepends=True)
                before = "".join(row[1:] for row in rows if row[0] in " -")
                after = "".join(row[1:] for row in rows if row[0] in " +")
                content = path.read_text(encoding="utf-8")
                assert content.count(before) == 1, f"{name.strip()} has not once:\n{before}"
                path.write_text(content.replace(before, after), encoding="utf-8")

    def _call(self, block: Block, command: Sequence[str]) -> list[list[str]]:
        log = self.folder / "bin" / "log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("")
        for name in ("python", "pip", "pytest", "tensorboard"):
            program = log.with_name(name)
            program.write_text(
                _PROGRAM.format(
                    python=sys.executable,
                    name=name,
                    log=str(log),
                    here=str(Path(__file__).parent),
                    more=dict(self.more),
                    dry=self.dry,
                    excuses=dict(self.excuses),
                )
            )
            program.chmod(0o755)
        environment = os.environ | {
            # The tests compile fast; a command that trains more than a toy has to run fast.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
            "PATH": f"{log.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
            "XLA_FLAGS": "",  # one device, as a reader's laptop has
        }
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True
        )
        failed = done.returncode != 0 and not self.dry
        message = f"{block.page}:{block.line} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert not failed, message
        assert "syntax error" not in done.stderr, message
        return [json.loads(line) for line in log.read_text().splitlines()]


def runnable(pages: Sequence[str] = PAGES) -> Iterator[Block]:
    """All blocks of some pages that do something, in order."""
    for page in pages:
        yield from (one for one in blocks(page) if one.language in ("sh", "python", "diff"))
