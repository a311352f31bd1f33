"""Where things are below `--workdir`, and the one state machine: absent, begun, done.

A stage is begun when its `lineage.json` is there, and done when its `done.json` is, written last;
an evaluation is done when its one JSON file is. All small files are renamed into place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpt_jax.errors import UserError

# Bytes, of systems' 4096 and 255: names below it are long too, and pathlib makes each folder within
# the call that makes the one below.
_LONGEST, _LONGEST_NAME = 1800, 255


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """`DIR/stages/<stage-id>/`."""

    path: Path

    @property
    def lineage(self) -> Path:
        """What the stage is and comes from, in words."""
        return self.path / "lineage.json"

    @property
    def metrics(self) -> Path:
        """One row per log interval."""
        return self.path / "metrics.csv"

    @property
    def views(self) -> Path:
        """A few images, and the views of them that training sees."""
        return self.path / "views.png"

    @property
    def checkpoints(self) -> Path:
        """Orbax's steps."""
        return self.path / "checkpoints"

    @property
    def done(self) -> Path:
        """Written last."""
        return self.path / "done.json"

    @property
    def is_done(self) -> bool:
        """Whether the stage needs no more work."""
        return self.done.is_file()


def stage_folder(workdir: Path, stage_id: str) -> StageFolder:
    """The folder of a stage, whether it is there or not."""
    return StageFolder(workdir / "stages" / stage_id)


def check_root(folder: str | Path) -> None:
    """Checks that a workdir can be written, or be made; makes nothing.

    Raises:
      UserError: if it is a file, is below one, may not be written to, or is no path.
    """
    here = Path(folder).absolute()
    path = os.fspath(here).encode("utf-8", "surrogatepass")
    if len(path) > _LONGEST or max(map(len, path.split(b"/"))) > _LONGEST_NAME or b"\0" in path:
        expected = f"a path of at most {_LONGEST} bytes, {_LONGEST_NAME} a name, without zero bytes"
        raise UserError("--workdir", str(folder), expected, "Choose another path.")
    while not os.path.lexists(here):
        here = here.parent
    if not here.is_dir():
        expected = f"a folder, but {here} is not one"
        raise UserError("--workdir", str(folder), expected, "Choose another path.")
    if not os.access(here, os.W_OK | os.X_OK):
        expected = f"a folder that can be written, but {here} cannot"
        raise UserError("--workdir", str(folder), expected, "Choose another, or allow it.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON by rename, so that the file is whole or absent."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields where to write a file, which is then renamed to `path`: it is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two runs may finish the same evaluation: neither may rename what the other is writing.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    yield temporary
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote."""
    return json.loads(path.read_text())


@contextlib.contextmanager
def locked(folder: StageFolder, wait: Callable[[str], None]) -> Iterator[None]:
    """Holds a stage alone; the operating system frees it when its owner dies.

    Args:
      folder: the stage.
      wait: told once whom this process waits for, if it has to.

    Raises:
      UserError: where the file system has no locks.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / "lock", "a+") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    file.seek(0)
                    wait(f"{folder.path.name} is held by {file.read() or 'another run'}: waiting")
                    told = True
                time.sleep(0.5)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                # Without a lock two runs could write one stage at once.
                expected = f"a file system with file locks (flock: {error.strerror})"
                fix = "Choose a workdir on a local disk."
                raise UserError("--workdir", str(folder.path), expected, fix) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
