"""Where things are below `--workdir`, and the one state machine: absent, begun, done.

A stage is begun when its `lineage.json` is there, and done when its `done.json` is, written last;
an evaluation is done when its one JSON file is. All small files are renamed into place, and one
that is damaged counts as absent: it is made again as if it never had been.
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
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from hpt_jax import lease
from hpt_jax.errors import UserError
from hpt_jax.shapes import DONE, EVALUATION, LINEAGE, fits

_REMOVE = "Move or delete it: it is made again."
# Bytes, of systems' 4096 and 255: names below it are long too, and pathlib makes each folder within
# the call that makes the one below.
_LONGEST, _LONGEST_NAME = 1800, 255
POLL_SECONDS = 0.5  # between two looks at what another process holds
# How file systems say that they have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


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
    def measures(self) -> Path:
        """What its features are like at some steps, told without labels."""
        return self.path / "measures.csv"

    @property
    def health(self) -> Path:
        """The verdict on it, in words."""
        return self.path / "health.json"

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
        """Whether the stage needs no more work, and those after it can start from it."""
        return _holds(self.done, DONE) and _holds(self.lineage, LINEAGE)

    def has(self, evaluation: str) -> bool:
        """Whether an evaluation is done, by its file below the folder."""
        return _holds(self.path / evaluation, EVALUATION)


def stage_folder(workdir: Path, stage_id: str) -> StageFolder:
    """The folder of a stage, whether it is there or not."""
    return StageFolder(workdir / "stages" / stage_id)


def surveys_folder(workdir: Path) -> Path:
    """Where it is kept what was found in the datasets that were looked at."""
    return workdir / "surveys"


def check_root(folder: str | Path) -> None:
    """Checks that a workdir can be written, or be made; makes nothing.

    Raises:
      UserError: if it is a file, is below one, may not be written to, or is no path.
    """
    here = Path(folder).absolute()
    path = str(here).encode("utf-8", "replace")
    long = len(path) > _LONGEST or max(map(len, path.split(b"/"))) > _LONGEST_NAME
    if long or b"\0" in path or path.decode() != str(here):  # JAX takes no other bytes
        expected = f"a UTF-8 path of up to {_LONGEST} bytes, {_LONGEST_NAME} a name, none zero"
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
    """Yields where to write a file, which is then renamed to `path`: it is whole or absent.

    Raises:
      UserError: there is a folder in its place, or a file in place of its folder; or it is below
        one that this process has lost (see `hpt_jax.lease`).
    """
    make_folder(path.parent)
    # Two runs may finish the same evaluation: neither may rename what the other is writing.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        flush(temporary)  # or a power loss could leave the new name without content
        if path.is_dir():
            raise UserError(str(path), None, "a file, but it is a folder", _REMOVE)
        lease.check(path)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk, where it outlives the power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems on a network cannot do it for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it.

    Raises:
      UserError: one of them is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        wrong = next(one for one in (path, *path.parents) if os.path.lexists(one))
        raise UserError(str(wrong), None, "a folder, but it is a file", _REMOVE) from None


def read_json(path: Path, shape: Any = dict) -> Any:
    """What `write_json` wrote; None where there is no such file, or not a whole one.

    Args:
      path: of the file.
      shape: what it must be, see `shapes.fits`.

    Raises:
      UserError: it may not be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (ValueError, RecursionError):  # damaged JSON or UTF-8
        return None
    except OSError as error:
        expected = f"a file that can be read, but: {error.strerror}"
        raise UserError(str(path), None, expected, "Allow it.") from None
    return content if fits(content, shape) else None


_held: dict[tuple[Any, ...], bool] = {}


def _holds(path: Path, shape: Any) -> bool:
    """Whether `read_json` finds something; a file that has not changed is not read again."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    key = (path, id(shape), status.st_ino, status.st_mtime_ns, status.st_size)
    if key not in _held:
        _held[key] = read_json(path, shape) is not None
    return _held[key]


class Lock(Protocol):
    """What `take` gives."""

    def close(self) -> None:
        """Gives the folder back."""


def take(folder: Path) -> Lock | None:
    """Takes a folder for this process alone; None where another one holds it.

    The operating system frees it when its owner dies. Where the file system has no locks, a lease
    that nobody renews ends (see `hpt_jax.lease`).

    Args:
      folder: a stage, or the workdir; made if it is not there.

    Raises:
      UserError: something else is in the lock's place; another process took over a lease.
    """
    make_folder(folder)
    path = folder / "lock"
    if path.is_dir() or path.is_symlink():  # the content of what a link leads to would be lost
        raise UserError(str(path), None, "a file, but it is a folder or a link", _REMOVE)
    with contextlib.ExitStack() as unless_taken:
        file = unless_taken.enter_context(open(path, "a+", errors="replace"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return lease.take(folder)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        unless_taken.pop_all()
        return file


def holder(folder: Path) -> str:
    """Who holds a folder that `take` did not give, in words."""
    path = folder / "lock"
    by_lock = path.read_text(errors="replace") if path.is_file() else ""
    return lease.holder(folder) or by_lock or "another run"


@contextlib.contextmanager
def locked(folder: Path, wait: Callable[[str], None]) -> Iterator[None]:
    """Holds a folder alone, as soon as nobody else does.

    Args:
      folder: as in `take`.
      wait: told once whom this process waits for, if it has to.

    Raises:
      UserError: as `take`.
    """
    told = False
    while (lock := take(folder)) is None:
        if not told:
            wait(f"{folder.name} is held by {holder(folder)}: waiting")
            told = True
        time.sleep(POLL_SECONDS)
    with contextlib.closing(lock):
        yield
