"""A stage's checkpoints: the only file that imports Orbax.

`<folder>/<step>/` holds Orbax's files and `manifest.json`, with the size and the blake2b of each,
which is renamed into place last: a step without a valid manifest is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

MANIFEST = "manifest.json"


class Checkpoints:
    """Saves and restores one stage's states; saving is asynchronous.

    Args:
      folder: `<stage>/checkpoints`.
      keep: how many of the newest checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder.absolute()
        self.keep = keep
        # Left by a kill in the middle of a save; the stage's lock makes this its only writer.
        for left in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        # Orbax's own callback runs before its rename; the manifest has to come after it.
        self._finalizer = futures.ThreadPoolExecutor(1)
        self._finalized: futures.Future[None] | None = None

    def save(self, step: int, tree: Any) -> None:
        """Starts to save `tree` as `step`; its arrays may be donated as soon as this returns."""
        self.wait()
        target = self.folder / str(step)
        if target.exists():  # left by a kill between Orbax's rename and the manifest's
            shutil.rmtree(target)
        self._checkpointer.save(target, args=ocp.args.StandardSave(tree))
        self._finalized = self._finalizer.submit(self._finalize, step)

    def _finalize(self, step: int) -> None:
        self._checkpointer.wait_until_finished()
        write_manifest(self.folder / str(step))
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / str(old))

    def wait(self) -> None:
        """Waits for the save under way, its manifest included; its error is raised here."""
        pending, self._finalized = self._finalized, None
        if pending is not None:
            pending.result()

    def steps(self) -> list[int]:
        """The steps that have a valid manifest, oldest first."""
        return steps_in(self.folder)

    def restore(self, step: int, like: Any) -> Any:
        """The exact tree that was saved as `step`.

        Args:
          step: one of `steps()`.
          like: a tree of arrays or of jax.ShapeDtypeStruct with shardings.
        """
        return self._checkpointer.restore(
            self.folder / str(step), args=ocp.args.StandardRestore(like)
        )

    def close(self) -> None:
        """Finishes the save under way and ends Orbax's threads."""
        self.wait()
        self._finalizer.shutdown()
        self._checkpointer.close()


def steps_in(folder: Path) -> list[int]:
    """Steps below a checkpoints folder that have a valid manifest, oldest first."""
    if not folder.is_dir():
        return []
    steps = [int(child.name) for child in folder.iterdir() if child.name.isdecimal()]
    return sorted(step for step in steps if manifest_is_valid(folder / str(step)))


def restore_subtree(folder: Path, step: int, name: str) -> dict[str, Any]:
    """The part `name` of a saved tree, as nested dicts of numpy arrays, whatever its shapes.

    Raises:
      KeyError: if the checkpoint has no such part.
    """
    path = folder.absolute() / str(step)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
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
    """Writes size and blake2b of every file below `folder`, by rename."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name != MANIFEST:
            files[path.relative_to(folder).as_posix()] = _fingerprint(path)
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(files, indent=1))
    os.replace(temporary, folder / MANIFEST)


def manifest_is_valid(folder: Path) -> bool:
    """Whether every file that the manifest names is there with its size and hash."""
    try:
        files = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # damaged JSON or UTF-8
        return False
    return (
        isinstance(files, dict)
        and bool(files)
        and all(
            (folder / name).is_file() and _fingerprint(folder / name) == entry
            for name, entry in files.items()
        )
    )


def file_hash(path: Path) -> str:
    """blake2b of a file, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "blake2b": file_hash(path)}
