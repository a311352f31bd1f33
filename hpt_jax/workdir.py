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
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpt_jax.errors import UserError

# A name that can be a file's, and leads nowhere else: of studies, stages and arms.
NAME = re.compile(r"[\w@+%-][\w.@+%-]*")


def _name(value: Any) -> bool:
    return type(value) is str and NAME.fullmatch(value) is not None


def _text(value: Any) -> bool:
    """Text that a file can hold, though perhaps as bytes of a name that are no UTF-8."""
    if type(value) is not str:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _seconds(value: Any) -> bool:
    return _number(value) and value > 0


def _point(value: Any) -> bool:
    return fits(value, [_number]) and len(value) == 2


def _evaluation(value: Any) -> bool:
    return type(value) is str and _name(value.removeprefix("evaluations/"))


_REMOVE = "Move or delete it: it is made again."

# What is read of each small file, as shapes for `fits`. They hold more; but a workdir may come from
# elsewhere, and what is read of it must be what it is taken for.
DONE = {"steps": _count, "steps_timed": _count, "seconds": _seconds, "checkpoint?": _count}
LINEAGE = {
    "id": _name,
    "kin": str,
    "words": str,
    "seed": _count,
    "config": {
        "dataset": str,
        "trainable": str,
        "steps": _count,
        "image_size": _count,
        "augment": dict,
        "model": {"arch": str, "width": _count, "stem": str, "stem_stride": _count},
    },
    "parents": [{"id": _name}],
    "dataset": (
        None,
        {
            "name": str,
            "fingerprint": str,
            "images": _count,
            "pretrained_on": _count,
            "unreadable": list,
            "pixel_window": (None, list),
            "cut": {...: list},
        },
    ),
    "pixel_mean": [_number],
    "pixel_std": [_number],
    "versions": {...: str},
    "weights?": (
        None,
        {"matched": _count, "expected": _count, "dialect": str, "notes": [str]},
    ),
}
EVALUATION = {
    "val": _share,
    "test": _share,
    "selected_by": str,
    "selections": [{"curve?": [_point]}],
    "labelled": list,
}
_SEEN = {"image": str, "classes": [str]}
NEIGHBOURS = {"queries": [{**_SEEN, "neighbours": [{**_SEEN, "right": bool}]}]}
PLAN = {
    "study": _name,
    "config_id": str,
    "config": {"evaluations": [_name], "analysis?": str, "domain?": str, "shared?": dict},
    "dataset": _text,
    "metric": _name,
    "runs": [
        {
            "arm": _name,
            "seed": _count,
            "stage_id": _name,
            "chain": [_name],
            "pretrain_steps": _count,
            "evaluations": {...: _evaluation},
            "neighbours?": _name,
        }
    ],
    "command?": {"config": str, "workdir": str, "overrides": [[str]]},
}

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
        """Whether the stage needs no more work, and those after it can start from it."""
        return _holds(self.done, DONE) and _holds(self.lineage, LINEAGE)

    def has(self, evaluation: str) -> bool:
        """Whether an evaluation is done, by its file below the folder."""
        return _holds(self.path / evaluation, EVALUATION)


def stage_folder(workdir: Path, stage_id: str) -> StageFolder:
    """The folder of a stage, whether it is there or not."""
    return StageFolder(workdir / "stages" / stage_id)


def check_root(folder: str | Path) -> None:
    """Checks that a workdir can be written, or be made; makes nothing.

    Raises:
      UserError: if it is a file, is below one, may not be written to, or is no path.
    """
    here = Path(folder).absolute()
    path = str(here).encode("utf-8", "replace")
    good = path.decode() == str(here)  # JAX takes no other bytes
    if len(path) > _LONGEST or max(map(len, path.split(b"/"))) > _LONGEST_NAME or b"\0" in path:
        good = False
    if not good:
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
      UserError: there is a folder in its place, or a file in place of its folder.
    """
    make_folder(path.parent)
    # Two runs may finish the same evaluation: neither may rename what the other is writing.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        flush(temporary)  # or a power loss could leave the new name without content
        if path.is_dir():
            raise UserError(str(path), None, "a file, but it is a folder", _REMOVE)
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
      shape: what it must be, see `fits`.

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


def fits(value: Any, shape: Any) -> bool:
    """Whether a value of JSON has a shape.

    A shape is a type, None, or a function that tells; a list of one shape, for as many as there
    are; a tuple of shapes, of which one must fit; or a dict of shapes by key, where a key with a
    question mark at its end may be absent, and ... stands for all keys. Other keys may be there.
    """
    if isinstance(shape, dict):
        if type(value) is not dict:
            return False
        if ... in shape:
            return all(fits(one, shape[...]) for one in value.values())
        return all(
            fits(value[key.rstrip("?")], one) if key.rstrip("?") in value else key.endswith("?")
            for key, one in shape.items()
        )
    if isinstance(shape, list):
        return type(value) is list and all(fits(one, shape[0]) for one in value)
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if shape is None:
        return value is None
    return type(value) is shape if isinstance(shape, type) else bool(shape(value))


@contextlib.contextmanager
def locked(folder: Path, wait: Callable[[str], None]) -> Iterator[None]:
    """Holds a folder alone; the operating system frees it when its owner dies.

    Args:
      folder: a stage, or the workdir; made if it is not there.
      wait: told once whom this process waits for, if it has to.

    Raises:
      UserError: where the file system has no locks, or something else is in the lock's place.
    """
    make_folder(folder)
    path = folder / "lock"
    if path.is_dir() or path.is_symlink():  # the content of what a link leads to would be lost
        raise UserError(str(path), None, "a file, but it is a folder or a link", _REMOVE)
    with open(path, "a+", errors="replace") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    file.seek(0)
                    wait(f"{folder.name} is held by {file.read() or 'another run'}: waiting")
                    told = True
                time.sleep(0.5)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                # Without a lock two runs could write one stage at once.
                expected = f"a file system with file locks (flock: {error.strerror})"
                fix = "Choose a workdir on a local disk."
                raise UserError("--workdir", str(folder), expected, fix) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
