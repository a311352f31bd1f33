"""A stage's checkpoints: the only file that imports Orbax.

`<folder>/<step>/` holds Orbax's files and `manifest.json`, with the size and the blake2b of each,
which is renamed into place last: a step without a manifest, or whose files are not as it says, is
no checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers
from orbax.checkpoint._src.metadata import array_metadata_store

from hpt_jax import lease
from hpt_jax.workdir import flush, make_folder

MANIFEST = "manifest.json"
# Orbax raises its errors, and logs them with a traceback as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)
# The first process saves and restores; the others have no workdir, and would be waited for.
_ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
)


class _NoOthers(array_metadata_store.Validator):
    """Where several processes run, one alone has written."""

    def validate_all_array_metadatas(self, array_metadatas: Any) -> None:
        """Has nothing to compare."""


def _checkpointer() -> ocp.AsyncCheckpointer:
    """Saves what every device has, from the first one's."""
    arrays = type_handlers.ArrayHandler(
        use_replica_parallel=False, array_metadata_store=array_metadata_store.Store()
    )
    handler = ocp.PyTreeCheckpointHandler(
        multiprocessing_options=_ALONE,
        type_handler_registry=type_handlers.create_type_handler_registry((jax.Array, arrays)),
        array_metadata_validator=_NoOthers(),
    )
    return ocp.AsyncCheckpointer(handler, multiprocessing_options=_ALONE)


class Checkpoints:
    """Saves and restores one stage's states; saving is asynchronous.

    The stage's lock makes this the only writer below its folder.

    Args:
      folder: `<stage>/checkpoints`.
      keep: how many of the newest checkpoints to keep, at least 1.
      keep_every: keep also those of every multiple of this many steps; 0: none.
      keep_steps: keep also those of these steps.
      beside: files that a checkpoint counts on, such as the rows of metrics before it: they are on
        the disk before it is one.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_every: int = 0,
        keep_steps: Sequence[int] = (),
        beside: Sequence[Path] = (),
    ):
        self.folder = folder.absolute()
        make_folder(self.folder)
        self._keep, self._keep_every, self._beside = keep, keep_every, beside
        self._keep_steps = frozenset(keep_steps)
        # Left by a kill in the middle of a save or of a deletion.
        for left in (*self.folder.glob("*.orbax-checkpoint-tmp*"), *self.folder.glob("*.old")):
            shutil.rmtree(left)
        self._checkpointer = _checkpointer()
        # Orbax's own callback runs before its rename; the manifest has to come after it.
        self._finalizer = futures.ThreadPoolExecutor(1)
        self._finalized: futures.Future[None] | None = None

    def save(self, step: int, tree: Any) -> None:
        """Starts to save `tree` as `step`; its arrays may be donated as soon as this returns.

        Raises:
          OSError: there is no room for it on the disk, or there was none for the one before.
          UserError: another process has taken over the stage.
        """
        self.wait()
        lease.check(self.folder / str(step))
        # Seen here a full disk is one clear error; Orbax's threads make many of it.
        if shutil.disk_usage(self.folder).free < sum(leaf.nbytes for leaf in jax.tree.leaves(tree)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        if (self.folder / str(step)).exists():
            self._set_aside(step)
        self._checkpointer.save(self.folder / str(step), args=ocp.args.PyTreeSave(tree))
        self._finalized = self._finalizer.submit(self._finalize, step)

    def _finalize(self, step: int) -> None:
        try:
            self._checkpointer.wait_until_finished()
        except ValueError as error:
            raise _of_the_disk(error, self.folder) from error
        for path in self._beside:
            if path.exists():
                flush(path)
                flush(path.parent)
        lease.check(self.folder / str(step))
        write_manifest(self.folder / str(step))
        for old in numbered(self.folder)[: -self._keep]:
            kept = old in self._keep_steps or (self._keep_every and old % self._keep_every == 0)
            if not kept:
                # In two steps, so that a kill between them leaves no damaged checkpoint.
                shutil.rmtree((self.folder / str(old)).rename(self.folder / f"{old}.old"))
        shutil.rmtree(self._aside(step), ignore_errors=True)  # which this one is again

    def wait(self) -> None:
        """Waits for the save under way, its manifest included.

        Raises:
          OSError: the disk is full, or may not be written to.
          UserError: another process has taken over the stage.
        """
        pending, self._finalized = self._finalized, None
        if pending is not None:
            try:
                pending.result()
            except Exception:
                lease.check(self.folder)  # or it would be told what became of the files then
                raise

    def restore_newest(self, like: Any, line: Callable[[str], None]) -> tuple[int, Any] | None:
        """The newest whole checkpoint: its step, and the exact tree; None where there is none.

        Damaged ones on the way are kept aside as `<step>.damaged`, until that step is saved again.

        Args:
          like: a tree of arrays or of jax.ShapeDtypeStruct with shardings.
          line: told of each damaged checkpoint.
        """
        steps = numbered(self.folder)
        for step in reversed(steps):
            path = self.folder / str(step)
            fault = fault_of(path)
            if fault is None:
                return step, restore(self.folder, step, like)
            self._set_aside(step)
            aside = self._aside(step).name
            line(f"note: {path}: damaged ({fault}), kept as {aside} and not used")
        if steps:
            line(f"note: {self.folder}: no whole checkpoint is left, so the stage begins anew")
        return None

    def _aside(self, step: int) -> Path:
        return self.folder / f"{step}.damaged"

    def _set_aside(self, step: int) -> None:
        shutil.rmtree(self._aside(step), ignore_errors=True)
        (self.folder / str(step)).rename(self._aside(step))

    def close(self) -> None:
        """Finishes the save under way and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._finalizer.shutdown()
            self._checkpointer.close()


def newest_whole(folder: Path, before: int | None = None) -> int | None:
    """The newest step, below `before`, whose files are as its manifest says; None without one.

    Another process may be saving meanwhile.
    """
    looked_at: set[int] = set()
    while True:
        left = set(numbered(folder)) - looked_at
        newest = max((step for step in left if before is None or step < before), default=None)
        if newest is None or fault_of(folder / str(newest)) is None:
            return newest
        looked_at.add(newest)


def copy(source: Path, step: int, target: Path) -> bool:
    """Copies a checkpoint from one stage's folder to another's, where it is whole or absent.

    Another process may be saving in the source meanwhile.

    Returns:
      Whether it could be had.

    Raises:
      OSError: as of a disk that is full.
    """
    make_folder(target)
    half = target / f"{step}.orbax-checkpoint-tmp-copy"  # what a kill leaves is deleted as such
    shutil.rmtree(half, ignore_errors=True)
    try:
        for name in _files(source / str(step)) | {MANIFEST: None}:
            (half / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / str(step) / name, half / name)
    except FileNotFoundError:  # deleted meanwhile
        pass
    if fault_of(half) is not None:
        shutil.rmtree(half, ignore_errors=True)
        return False
    write_manifest(half)  # which brings its files to the disk
    half.rename(target / str(step))
    flush(target)
    return True


def numbered(folder: Path) -> list[int]:
    """The steps below a checkpoints folder, whole or not, oldest first."""
    names = [child.name for child in folder.glob("[0-9]*") if child.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def restore(folder: Path, step: int, like: Any) -> Any:
    """The exact tree that was saved as `step`.

    Args:
      folder: `<stage>/checkpoints`.
      step: of a whole checkpoint.
      like: a tree of arrays or of jax.ShapeDtypeStruct with shardings.
    """
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=_ALONE)
    with ocp.Checkpointer(handler, multiprocessing_options=_ALONE) as reader:
        path = folder.absolute() / str(step)
        return reader.restore(path, args=ocp.args.StandardRestore(like))


def restore_subtree(folder: Path, step: int, name: str) -> dict[str, Any]:
    """The part `name` of a saved tree, as nested dicts of numpy arrays, whatever its shapes.

    Raises:
      KeyError: if the checkpoint has no such part.
    """
    path = folder.absolute() / str(step)
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_ALONE)
    with ocp.Checkpointer(handler, multiprocessing_options=_ALONE) as reader:
        saved = reader.metadata(path).item_metadata.tree[name]
        # Without a given type Orbax would ask for the devices of the run that wrote the file.
        item = {
            name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
        }
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        restored = reader.restore(
            path,
            args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True),
        )
    return restored[name]


def write_manifest(folder: Path) -> None:
    """Writes size and blake2b of every file below `folder`, by rename, when all is on the disk."""
    files = {name: _fingerprint(path) for name, path in _files(folder).items()}
    for path in folder.rglob("*"):
        flush(path)
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(_manifest_text(files))
    flush(temporary)
    os.replace(temporary, folder / MANIFEST)
    flush(folder)
    flush(folder.parent)


def fault_of(folder: Path) -> str | None:
    """What is not as the manifest of a step says, in words; None if all is."""
    if not folder.is_dir():
        return "it is not there"
    name = MANIFEST
    try:
        text = (folder / MANIFEST).read_text()
        files = json.loads(text)
        # To the letter, since JSON reads alike with another white space.
        if not isinstance(files, dict) or not files or text != _manifest_text(files):
            return f"{MANIFEST} is damaged"
        present = _files(folder)
        for name, entry in files.items():
            if name not in present:
                return f"{name} is not there"
            if _fingerprint(present[name]) != entry:
                return f"{name} is not as it was saved"
    except (ValueError, RecursionError):  # damaged JSON or UTF-8
        return f"{MANIFEST} is damaged"
    except FileNotFoundError:
        return f"{name} is not there"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """All files below a step but its manifest, by their path from there."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {name: path for name, path in found.items() if path.is_file() and name != MANIFEST}


def _manifest_text(files: dict[str, Any]) -> str:
    return json.dumps(files, indent=1)


def file_hash(path: Path) -> str:
    """blake2b of a file, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "blake2b": file_hash(path)}


def _of_the_disk(error: ValueError, folder: Path) -> Exception:
    """The operating system's error in the words of Tensorstore, which raises it as a ValueError."""
    code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    if code is None:
        return error
    return OSError(int(code[1]), os.strerror(int(code[1])), str(folder))
