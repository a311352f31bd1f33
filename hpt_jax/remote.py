"""What lies at addresses such as gs://bucket/set or s3://bucket/model.pth, through fsspec.

The program works on local files. A dataset or a checkpoint at an address is copied to a cache on
this machine, once for each state that it is in, and then is a local one; `mirror` keeps a workdir.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

from hpt_jax.errors import UserError, nearest
from hpt_jax.telemetry.display import Watch, unwatched
from hpt_jax.workdir import locked, read_json, write_json

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_READ_AT_ONCE = 1 << 26  # bytes: smaller files may grow while they are sent
_THREADS = 16  # that files are fetched by
_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts
_DISK = (errno.ENOSPC, errno.EDQUOT)  # of this machine
# What another attempt would not mend.
_FINAL = (FileNotFoundError, FileExistsError, PermissionError)
STEP = re.compile(r"checkpoints/(\d+)/")  # below the folder of a stage
# Where most datasets and workdirs are: listed where a protocol is no known one's neighbour.
_COMMON = ("gs", "s3", "abfs", "hdfs", "sftp", "https", "memory", "file")
_Result = TypeVar("_Result")


def is_address(text: str) -> bool:
    """Whether a text is `protocol://...`, and no local path."""
    return bool(_ADDRESS.match(text))


def cache() -> Path:
    """Where copies are kept: $HPT_JAX_CACHE, by default ~/.cache/hpt_jax."""
    return Path(os.environ.get("HPT_JAX_CACHE") or "~/.cache/hpt_jax").expanduser().absolute()


def check_cache() -> None:
    """Checks that copies can be kept; makes nothing.

    Raises:
      UserError: the cache is no folder, or may not be written to.
    """
    here = cache()
    while not os.path.lexists(here):
        here = here.parent
    if not here.is_dir() or not os.access(here, os.W_OK | os.X_OK):
        expected = f"a folder for copies that can be written, but {here} cannot"
        raise UserError("HPT_JAX_CACHE", str(cache()), expected, "Set it to another one.")


def home(kind: str, *told: object) -> Path:
    """The folder of the cache that belongs to what is told, such as an address."""
    text = json.dumps([str(one) for one in told])
    return cache() / f"{kind}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file at an address.

    Attributes:
      size: in bytes; -1 where the service does not tell.
      version: another one whenever the file is written anew, as the service tells it.
    """

    size: int
    version: str


class Place:
    """A folder or a file at an address.

    Args:
      address: `protocol://...`.
      field: of the config, or the flag, that names it.

    Raises:
      UserError: the protocol is not known, or its package is not installed. All methods raise it
        for what the service refuses, in its own words.
    """

    def __init__(self, address: str, field: str):
        self.address, self.field = address.rstrip("/"), field
        self._files = _filesystem(address, field)
        self._path = self._files._strip_protocol(self.address)

    def listing(self, below: str = "", deep: bool = True) -> dict[str, Entry]:
        """All files in it, by their paths from there; {} where there are none.

        Args:
          below: of a folder in it alone.
          deep: also of the folders in that.
        """
        depth, start = None if deep else 1, self._path.rstrip("/") + "/"
        path = self._below(below)
        found = self._asked(lambda: self._files.find(path, maxdepth=depth, detail=True))
        return {
            name.removeprefix(start): _entry(info)
            for name, info in found.items()
            # Some services list what has the same beginning too, and folders as empty files.
            if info.get("type") == "file" and name.startswith(start) and not name.endswith("/")
        }

    def entry(self, name: str = "") -> Entry | None:
        """Of one file, or of the address itself; None where there is none."""
        try:
            info = self._asked(lambda: self._files.info(self._below(name)), (FileNotFoundError,))
        except FileNotFoundError:
            return None
        return _entry(info) if info.get("type") == "file" else None

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""
        try:
            content: bytes = self._asked(
                lambda: self._files.cat_file(self._below(name)), (FileNotFoundError,)
            )
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes, new: bool = False) -> bool:
        """Writes a file; where it has to be `new`, whether it was so, and is written."""
        mode = "create" if new else "overwrite"
        try:
            self._asked(
                lambda: self._files.pipe_file(self._made(name), content, mode=mode),
                (FileExistsError,),
            )
        except FileExistsError:
            return False
        return True

    def send(self, name: str, source: Path) -> bool:
        """Writes a local file there; False where that is gone meanwhile."""
        try:
            if source.stat().st_size < _READ_AT_ONCE:
                self.write(name, source.read_bytes())
            else:
                self._asked(lambda: self._files.put_file(str(source), self._made(name)))
        except FileNotFoundError:
            return False
        except UserError:
            if source.exists():
                raise
            return False
        return True

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file here, whole or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            self._asked(lambda: self._files.get_file(self._below(name), str(partial)))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Deletes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._asked(lambda: self._files.rm_file(self._below(name)), (FileNotFoundError,))

    def _below(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    def _made(self, name: str) -> str:
        """The path of a file that is about to be written."""
        path = self._below(name)
        if not self._files.async_impl:  # the others are services that have no folders
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        return path

    def _asked(
        self, what: Callable[[], _Result], expected: tuple[type[Exception], ...] = ()
    ) -> _Result:
        """What a service answers, if need be to a later attempt; raises what is `expected`."""
        for wait in (*_WAITS, None):
            try:
                return what()
            except expected:
                raise
            except Exception as error:
                # Each service's package has errors of its own, without a common kind.
                ours = not isinstance(error, OSError) and type(error).__module__ == "builtins"
                if ours or getattr(error, "errno", None) in _DISK:
                    raise
                if wait is None or isinstance(error, _FINAL) or _is_a_mistake(error):
                    raise self._refused(error) from error
            time.sleep(wait)
        raise AssertionError

    def _refused(self, error: Exception) -> UserError:
        says = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        expected = f"an address that can be used from here, but the service says: {says}"
        fix = "Check the address, the credentials of this machine and its network."
        return UserError(self.field, self.address, expected, fix)


def _filesystem(address: str, field: str) -> Any:
    import fsspec
    from fsspec.registry import known_implementations

    protocol = address.partition("://")[0].lower()
    if protocol not in fsspec.available_protocols():
        known = nearest(protocol, _COMMON)
        raise UserError(field, address, "an address of a protocol that fsspec knows", known)
    try:
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        absent = isinstance(error, ImportError) and package != "fsspec"
        fix = f"Do: pip install {package}" if absent else "Do as it says."
        expected = f"an address that can be used from here, but fsspec says: {error}"
        raise UserError(field, address, expected.rstrip("."), fix) from error


def _is_a_mistake(error: Exception) -> bool:
    """Whether a service says that it was asked wrongly, as far as its words tell."""
    says = f"{type(error).__name__} {error}".lower()
    return any(word in says for word in ("credential", "invalid", "validation"))


def _entry(info: Mapping[str, Any]) -> Entry:
    keys = ("ETag", "etag", "generation", "LastModified", "mtime", "created")
    version = next((str(info[key]) for key in keys if info.get(key)), "")
    return Entry(-1 if info.get("size") is None else int(info["size"]), version)


def check_names(names: Iterable[str], place: Place) -> None:
    """Refuses what cannot be files below a folder, and what would be outside of it.

    Raises:
      UserError: there is such a name.
    """
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            expected = f"names that can be files below a folder, but there is {name!r}"
            raise UserError(place.field, place.address, expected, "Rename it there.")


def copied(place: Place, listing: Mapping[str, Entry], watch: Watch = unwatched) -> Path:
    """The folder with a copy of some files; what a kill has left of it is made whole.

    Args:
      place: where they are.
      listing: which ones, as they are now: another state is another copy.
      watch: shows the progress, in files.

    Raises:
      UserError: they cannot be had.
    """
    check_cache()
    check_names(listing, place)
    folder = _copy_of(place, listing)
    with locked(folder, lambda text: None):
        if not is_copied(place, listing):
            files = folder / "files"
            left = {name: one for name, one in listing.items() if not _is_there(files / name, one)}
            fetch_all(place, left, files, watch)
            write_json(folder / "complete.json", {"address": place.address, "files": len(listing)})
    return folder / "files"


def is_copied(place: Place, listing: Mapping[str, Entry]) -> bool:
    """Whether `copied` has nothing left to do."""
    return read_json(_copy_of(place, listing) / "complete.json") is not None


def _copy_of(place: Place, listing: Mapping[str, Entry]) -> Path:
    told = sorted((name, one.size, one.version) for name, one in listing.items())
    return home("copy", place.address, told)


def _is_there(path: Path, entry: Entry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size


def fetch_all(
    place: Place, listing: Mapping[str, Entry], folder: Path, watch: Watch = unwatched
) -> None:
    """Copies files below a folder, many at a time.

    Raises:
      UserError: they cannot be had, or are written meanwhile.
    """
    if not listing:
        return

    def fetch(name: str) -> None:
        place.fetch(name, folder / name)
        if listing[name].size >= 0 and not _is_there(folder / name, listing[name]):
            (folder / name).unlink()
            expected = f"files that nobody writes while they are copied, but {name} has changed"
            raise UserError(place.field, place.address, expected, "Start the same command again.")

    with (
        watch(f"copying {place.address}", len(listing)) as update,
        futures.ThreadPoolExecutor(_THREADS) as pool,
    ):
        pending = [pool.submit(fetch, name) for name in listing]
        try:
            for done, one in enumerate(futures.as_completed(pending), 1):
                one.result()
                update(done, "")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# Datasets and weights

_sets: dict[Set, Path] = {}
_weights: dict[str, Path] = {}


@dataclasses.dataclass(frozen=True)
class Set:
    """The files of a dataset at an address.

    Attributes:
      address: of a folder.
      reads: whether a file, by its path from there, may belong to the set.
      below: a folder in it that the set is confined to; '': it is all of it.
    """

    address: str
    reads: Callable[[str], bool]
    below: str = ""

    def listing(self) -> tuple[Place, dict[str, Entry]]:
        """Where they are and which ones, as they are now."""
        place = Place(self.address, "dataset")
        names = place.listing(self.below)
        return place, {name: one for name, one in names.items() if self.reads(name)}

    def fetch(self, watch: Watch = unwatched) -> Path | None:
        """The folder with the copy of its present state; None where there are no files."""
        place, listing = self.listing()
        if not listing:
            return None
        _sets[self] = copied(place, listing, watch)
        return _sets[self]

    def known(self) -> Path | None:
        """The copy that this process has taken already, if it has.

        A run is of one state of its sets, also where they change meanwhile.
        """
        return _sets.get(self)

    def present(self) -> Path | None:
        """The copy, where there is one already; nothing is copied."""
        place, listing = (None, {}) if self.known() else self.listing()
        if place is not None and listing and is_copied(place, listing):
            return copied(place, listing)
        return self.known()


def weights(address: str, field: str = "init") -> Path:
    """A local copy of a checkpoint: a file with what tells of it beside it, or a folder of one.

    Of the folder of a stage its newest checkpoint alone is taken.

    Returns:
      Its path, of the same last name; one where nothing is, if there is nothing at the address.

    Raises:
      UserError: it cannot be had.
    """
    if address not in _weights:
        place = Place(address, field)
        above, _, last = place.address.rpartition("/")
        inside = {} if place.entry() else _of_weights(place.listing())
        if inside:
            _weights[address] = copied(place, inside)
        else:
            around = Place(above, field)
            files = {name: around.entry(name) for name in (last, "config.json")}
            listing = {name: one for name, one in files.items() if one is not None}
            if last not in listing or ".data-" in last or last.endswith(".index"):
                prefix = re.sub(r"\.(index|data-\d+-of-\d+|meta)$", "", last) + "."
                named = around.listing(deep=False).items()
                listing |= {name: one for name, one in named if name.startswith(prefix)}
            _weights[address] = copied(around, listing) / last
    return _weights[address]


def _of_weights(listing: Mapping[str, Entry]) -> dict[str, Entry]:
    """What of a folder may be weights: those of a stage, or the files at its top."""
    if "lineage.json" not in listing:
        return {name: one for name, one in listing.items() if "/" not in name}
    steps = [int(found[1]) for found in map(STEP.match, listing) if found]
    newest = f"checkpoints/{max(steps, default=0)}/"
    small = ("lineage.json", "done.json")
    return {name: one for name, one in listing.items() if name in small or name.startswith(newest)}
