"""Compiled programs that survive the process.

JAX writes the entries of its cache in place and never replaces one: what a kill cut short would be
found broken, and compiled anew, at every start. So they are looked through before they are used.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from hpt_jax.workdir import make_folder, read_json, write_json

MIN_SECONDS = 0.1  # of compiling, that are worth an entry
_ZSTD = b"\x28\xb5\x2f\xfd"  # which JAX takes where Python or a package has it


def keep(folder: Path, line: Callable[[str], None]) -> None:
    """Lets compiled programs survive the process, in a folder; damaged ones are removed.

    Where JAX_COMPILATION_CACHE_DIR names another one, JAX uses that, and all is left to it.

    Args:
      folder: made if it is not there; several processes may share it.
      line: told how many were removed, if any.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    make_folder(folder)
    removed = remove_damaged(folder)
    if removed:
        line(f"note: {removed} damaged programs in {folder} are removed, and compiled again")
    compilation_cache.reset_cache()  # a second run in one process has another folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def remove_damaged(folder: Path) -> int:
    """Removes the entries of a cache that are not whole, or not what they were; returns how many.

    One that is seen for the first time must decompress to its end; its hash is then kept, because
    not every compression has a checksum, and since it is quicker to compare. What another process
    is writing at this moment may be taken for damaged: it is then compiled once more.
    """
    record = folder / "checked.json"
    known: dict[str, str] = read_json(record, {...: str}) or {}
    kept: dict[str, str] = {}
    removed = 0
    for path in sorted(folder.glob("*-cache")):
        try:
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):  # removed by another process; no entry
            continue
        found = hashlib.blake2b(content, digest_size=16).hexdigest()
        if known.get(path.name) == found or (path.name not in known and _decompresses(content)):
            kept[path.name] = found
        else:
            path.unlink(missing_ok=True)
            removed += 1
    if kept != known:
        write_json(record, kept)
    return removed


def _decompresses(content: bytes) -> bool:
    if not content.startswith(_ZSTD):
        try:
            zlib.decompress(content)
        except zlib.error:
            return False
        return True
    for name in ("compression.zstd", "zstandard"):
        try:
            zstd = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        try:
            zstd.decompress(content)
        except zstd.ZstdError:
            return False
    return True  # where nothing can read it, JAX does not try to either
