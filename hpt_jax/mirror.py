"""A workdir at an address: a local mirror of it, in which a run works as in any other workdir.

Files are published when they are whole, in an order in which each is there before what counts on
it: rows before the checkpoint, a checkpoint's files before its manifest, all of a stage before its
`done.json`, evaluations after that. So another machine can go on from what is published, at any
moment. Object stores have no locks; a lease says who works there.

    <cache>/mirror-<hash>/workdir/         the mirror
                          published.json   which state of each file is published
                          lease.json       the lease under which it was written last
                          sending/         links to a checkpoint that is under way
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

from hpt_jax import checkpoints, remote
from hpt_jax.errors import Mistake, UserError
from hpt_jax.remote import Entry, Place
from hpt_jax.signals import Stop
from hpt_jax.telemetry.display import Display
from hpt_jax.workdir import locked, read_json, write_json

LOCK = "lock.json"
_NOBODY = "nobody"  # owns a lease that was given back
BEAT_SECONDS = 20.0
EXPIRES_SECONDS = 180.0  # without a beat
SETTLE_SECONDS = 1.0
LOOK_SECONDS = 5.0  # between two looks at what is new
CALM_SECONDS = 60.0  # between two publications of what only grows: rows, the page
_FIELD = "--workdir"
_STEP = re.compile(rf"(stages/[^/]+/){remote.STEP.pattern}")
_MANIFEST = re.compile(rf"{_STEP.pattern}manifest\.json")
# What counts on a stage's other files.
_LAST = re.compile(r"stages/[^/]+/(done\.json|evaluations/|neighbours-)|results\.csv|report/")
# What is this machine's own, the lease, and half or damaged checkpoints.
_OWN = re.compile(
    r"compilation_cache/|(.*/)?lock$|(.*/)?lease/|lock\.json$|.*\.tmp$|.*/checkpoints/[^/]*[^/\d][^/]*/"
)


def _record(value: Any) -> bool:
    return isinstance(value, list) and list(map(type, value)) == [int, int, str]


def home_of(address: str) -> Path:
    """The mirror of a workdir at an address."""
    return remote.home("mirror", address.rstrip("/")) / "workdir"


@contextlib.contextmanager
def mirrored(address: str, display: Display, stop: Stop) -> Iterator[Path]:
    """Yields the local mirror of a workdir, which is published as it changes, and on leaving.

    Args:
      address: of the workdir.
      display: where it is told what is copied, and what cannot be published for now.
      stop: asked to stop where another run has taken over.

    Raises:
      UserError: the address cannot be used, another run works there, or something is not published
        in the end: it is kept in the mirror, and published by the same command.
    """
    place, root = Place(address, _FIELD), home_of(address)
    remote.check_cache()
    with (
        locked(root.parent, display.line),
        Lease(place, root.parent, display, stop).held() as lease,
    ):
        display.line(f"{place.address} is mirrored in {root}")
        mirror = Mirror(place, root, display, lease)
        mirror.bring()
        lease.keep()
        over = threading.Event()
        with futures.ThreadPoolExecutor(1) as pool:
            publisher = pool.submit(mirror.publish_until, over)
            try:
                with _told_as(place.address, root):
                    yield root
            except BaseException:
                over.set()
                publisher.result()
                lease.check()
                try:
                    mirror.publish(everything=True)
                except UserError as error:
                    display.line(f"note: {error}")
                raise
            over.set()
            publisher.result()
            lease.check()
            mirror.publish(everything=True)
        display.outcome(f"all of it is published to {place.address}")


@contextlib.contextmanager
def _told_as(address: str, root: Path) -> Iterator[None]:
    """Lets mistakes name what is at the address, which counts: what is deleted here comes back."""
    try:
        yield
    except UserError as error:
        raise UserError.of(
            [
                Mistake(
                    one.field.replace(str(root), address),
                    one.value,
                    one.expected.replace(str(root), address),
                    one.fix.replace(str(root), address),
                )
                for one in error.mistakes
            ]
        ) from error


@contextlib.contextmanager
def glimpsed(address: str) -> Iterator[Path]:
    """Yields a folder with the small files of a workdir at an address, as a dry run needs them.

    Raises:
      UserError: the address cannot be used.
    """
    place = Place(address, _FIELD)
    listing = {name: one for name, one in place.listing().items() if name.endswith(".json")}
    small = {name: one for name, one in listing.items() if not _OWN.match(name)}
    small = {name: one for name, one in small.items() if not _STEP.match(name)}
    remote.check_names(listing, place)
    with tempfile.TemporaryDirectory(prefix="hpt_jax-") as folder:
        for manifest in filter(_MANIFEST.fullmatch, listing):  # that a step is there is enough
            (Path(folder) / manifest).parent.mkdir(parents=True)
        remote.fetch_all(place, small, Path(folder))
        yield Path(folder)


class Lease:
    """A file that says who works at an address, and that he is alive.

    Whether he is, is told by whether the file changes while it is looked at: clocks need not agree.

    Args:
      place: the workdir.
      home: where it is kept which lease this machine took last; its lock is held, so that the
        owner of that one is gone.
      display: told whom this process waits for.
      stop: asked to stop where the lease is lost.

    Attributes:
      goes_on: whether nobody has worked there since this machine did.
    """

    def __init__(self, place: Place, home: Path, display: Display, stop: Stop):
        self._place, self._own = place, home / "lease.json"
        self._display, self._stop = display, stop
        self._owner = f"process {os.getpid()} on {socket.gethostname()}"
        self._token, self._beats, self._lost = uuid.uuid4().hex, 0, ""
        self._over, self.goes_on = threading.Event(), False

    @contextlib.contextmanager
    def held(self) -> Iterator[Lease]:
        """Holds the lease, and gives it back.

        Raises:
          UserError: another run holds it.
        """
        self._take()
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            yield self
        finally:
            self._over.set()
            beating.join()
            self._owner = _NOBODY
            with contextlib.suppress(UserError):  # it expires
                if not self._lost:
                    self._place.write(LOCK, self._content())

    def check(self) -> None:
        """Raises a UserError where another run has taken over."""
        if self._lost:
            raise self._held_by(self._lost)

    def _take(self) -> None:
        before: str = (read_json(self._own, {"token": str}) or {}).get("token", "")
        content = self._place.read(LOCK)
        if content is not None or not self._place.write(LOCK, self._content(), new=True):
            found = _told(content or self._place.read(LOCK))
            self.goes_on = found["token"] == before != ""
            if self.goes_on:
                self._token = before  # so that it is found again, whenever this process ends
            elif found["owner"] != _NOBODY:
                self._watch(found)
            self._place.write(LOCK, self._content())
            time.sleep(SETTLE_SECONDS)  # for another one that has seen the same
            found = _told(self._place.read(LOCK))
            if found["token"] != self._token:
                raise self._held_by(found["owner"])
        if not self.goes_on:
            self._own.unlink(missing_ok=True)  # until the mirror is as what is there

    def keep(self) -> None:
        """Notes that the mirror is as what is there, and from now on ahead of it."""
        write_json(self._own, {"token": self._token})

    def _watch(self, found: dict[str, Any]) -> None:
        """Returns when a lease has expired."""
        owner = found["owner"]
        self._display.line(
            f"{self._place.address} is held by {owner}: waiting for up to {EXPIRES_SECONDS:.0f} "
            "seconds to see whether that is alive"
        )
        began = time.monotonic()
        while time.monotonic() - began < EXPIRES_SECONDS:
            time.sleep(min(LOOK_SECONDS, EXPIRES_SECONDS / 4))
            now = _told(self._place.read(LOCK))
            if now["owner"] == _NOBODY:
                return
            if now != found:
                raise self._held_by(now["owner"])
        self._display.line(f"note: nothing was heard of {owner}: it is taken over")

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with contextlib.suppress(UserError):  # the service may be out of reach for a while
                found = _told(self._place.read(LOCK))
                if found["token"] not in (self._token, ""):
                    self._lost = found["owner"] or "another run"
                    self._stop.ask(signal.SIGTERM)
                    return
                self._beats += 1
                self._place.write(LOCK, self._content())

    def _content(self) -> bytes:
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        told = {"owner": self._owner, "token": self._token, "beats": self._beats, "time": since}
        return json.dumps(told).encode()

    def _held_by(self, owner: str) -> UserError:
        expected = f"a workdir in which no other run works, but {owner or 'another one'} does"
        fix = f"Wait for it, or stop it; its lease is {LOCK} there."
        return UserError(_FIELD, self._place.address, expected, fix)


def _told(content: bytes | None) -> dict[str, Any]:
    """What a lease says: 'owner', 'token' and 'beats'; '' where it makes no sense."""
    try:
        told = json.loads(content or b"{}")
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    return {name: str(told.get(name, "")) for name in ("owner", "token", "beats")}


class Mirror:
    """Keeps a local folder and a workdir at an address alike.

    Args:
      place: the workdir.
      root: the folder.
      display: where it is told what is copied, and what cannot be published.
      lease: of the workdir.
    """

    def __init__(self, place: Place, root: Path, display: Display, lease: Lease):
        self._place, self._root, self._display, self._lease = place, root, display, lease
        self._record, self._pins = root.parent / "published.json", root.parent / "sending"
        found = read_json(self._record, {...: _record}) or {}
        # Name -> (size, time of change) of the file here and the version there that are alike; '':
        # the version is not known, but it is from here.
        self._known = {name: tuple(one) for name, one in found.items()}
        self._calm_until = 0.0

    def bring(self) -> None:
        """Copies what is there and not here; what was deleted there is deleted here.

        What is not published of an earlier run is kept, unless another machine has worked there
        since: then it would not fit to what that one has made. Of stages that are done only the
        checkpoints that others can start from are taken.
        """
        there = {n: one for n, one in self._place.listing().items() if not _OWN.match(n)}
        remote.check_names(there, self._place)
        if not self._lease.goes_on:
            for name in self._files():
                version = there[name].version if name in there else None
                if self._known.get(name) != (*self._stated(name), version):
                    self._delete(name)
        for name in self._known.keys() - there.keys():
            if self._state(name) == self._known.pop(name)[:2]:
                self._delete(name)
        small = {name: one for name, one in there.items() if not _STEP.match(name)}
        self._fetch(small)
        steps = {name: one for name, one in there.items() if name not in small}
        unwanted = steps.keys() - self._wanted(steps)
        for name in unwanted - self._known.keys():
            if f"{_step_of(name)}manifest.json" not in there:  # the rest of a publication
                self._known[name] = (-1, -1, there[name].version)
        wanted = {name: one for name, one in steps.items() if name not in unwanted}
        self._fetch({n: one for n, one in wanted.items() if not _MANIFEST.fullmatch(n)})
        self._fetch({n: one for n, one in wanted.items() if _MANIFEST.fullmatch(n)})

    def _wanted(self, steps: dict[str, Entry]) -> set[str]:
        """The files of those checkpoints that are whole and may be needed."""
        whole: dict[str, list[int]] = {}
        for name in steps:
            if found := _MANIFEST.fullmatch(name):
                whole.setdefault(found[1], []).append(int(found[2]))
        taken = set()
        for stage, numbers in whole.items():
            folder = self._root / stage
            here = self._steps_here(stage)
            if (folder / "done.json").is_file():
                branch = (read_json(folder / "lineage.json") or {}).get("branch") or {}
                numbers = [one for one in numbers if one in (max(numbers), branch.get("step"))]
            for number in numbers:
                step = f"{stage}checkpoints/{number}/"
                # One that was deleted here is deleted there too, by the next publication.
                gone = f"{step}manifest.json" in self._known and number not in here
                if not (gone and max(here, default=-1) > number):
                    taken.add(step)
        return {name for name in steps if _step_of(name) in taken}

    def _steps_here(self, stage: str) -> list[int]:
        """The checkpoints of a stage that have a manifest."""
        folder = self._root / stage / "checkpoints"
        steps = checkpoints.numbered(folder)
        return [step for step in steps if (folder / str(step) / checkpoints.MANIFEST).is_file()]

    def _fetch(self, listing: dict[str, Entry]) -> None:
        left = {name: one for name, one in listing.items() if self._is_newer(name, one)}
        remote.fetch_all(self._place, left, self._root, self._display.progress)
        for name, one in left.items():
            self._known[name] = (*self._stated(name), one.version)
        self._save()

    def _is_newer(self, name: str, there: Entry) -> bool:
        """Whether a file has to be brought; one that has changed here is newer here."""
        state, known = self._state(name), self._known.get(name, (0, 0, ""))
        return state is None or (state == known[:2] and known[2] not in ("", there.version))

    def publish_until(self, over: threading.Event) -> None:
        """Publishes what is new, now and then; what fails is tried again."""
        failed = False
        while not over.wait(CALM_SECONDS if failed else LOOK_SECONDS):
            try:
                self.publish()
            except UserError as error:
                if not failed:
                    self._display.line(f"note: {error} It is tried again every minute.")
                failed = True
            else:
                failed = False

    def publish(self, everything: bool = False) -> None:
        """Publishes what is new where something counts on it, all of it now and then.

        Args:
          everything: whether to publish all of it.

        Raises:
          UserError: something is not published.
        """
        # In the reverse of the order of publication, since the run goes on meanwhile.
        gone = [name for name in self._known if self._is_deleted(name)]
        last = [name for name in self._changed() if _LAST.match(name) or _MANIFEST.fullmatch(name)]
        steps = {_step_of(name) for name in last} | {""}
        rest = [one for one in self._changed() if _step_of(one) in steps and not _LAST.match(one)]
        urgent = any(not name.startswith("report/") for name in last)
        if not (everything or urgent or time.monotonic() > self._calm_until):
            return
        self._lease.check()
        left = sorted({*rest, *last}, key=_order)
        try:
            self._pin(left)
            self._send_all(left)
            for name in sorted(gone, key=lambda name: not _MANIFEST.fullmatch(name)):
                if self._state(name) is None:  # or it is written anew
                    self._place.delete(name)
                    self._known.pop(name, None)
            for name, one in self._place.listing().items():
                if name in self._known:
                    self._known[name] = (*self._known[name][:2], one.version)
        except UserError as error:
            count = f"{len(left)} files, such as {left[0]}," if left else "what is deleted"
            (mistake,) = error.mistakes
            expected = f"{mistake.expected} ({count} of {self._root} not published yet)"
            fix = f"{mistake.fix} Nothing is lost: the same command publishes it."
            raise UserError(_FIELD, self._place.address, expected, fix) from error
        finally:
            shutil.rmtree(self._pins, ignore_errors=True)
            self._save()
        self._calm_until = time.monotonic() + CALM_SECONDS

    def _is_deleted(self, name: str) -> bool:
        """Whether the run has deleted a published file, and not somebody who cleans the cache."""
        if self._state(name) is not None:
            return False
        step = _STEP.match(name)
        if step is None:
            stage, _, last = name.rpartition("/")
            begun = self._state(f"{stage}/lineage.json") is not None
            return begun and last in ("done.json", "metrics.csv", "measures.csv")
        here = self._steps_here(step[1])
        return self._known[name][0] < 0 or max(here, default=-1) >= int(step[2])

    def _send_all(self, left: list[str]) -> None:
        """Publishes files in their order, and takes each from the list."""
        halves = set()
        while left:
            step = _step_of(left[0])
            # What is deleted meanwhile, as old checkpoints are, is no whole one.
            if step not in halves and not self._send(left[0]) and step:
                halves.add(step)
            left.pop(0)

    def _pin(self, names: list[str]) -> None:
        """Keeps the newest checkpoint of each stage until it is sent.

        Else, where a service is slower than training saves, none would ever be sent whole.
        """
        newest: dict[str, int] = {}
        for found in filter(None, map(_MANIFEST.fullmatch, names)):
            newest[found[1]] = max(int(found[2]), newest.get(found[1], 0))
        shutil.rmtree(self._pins, ignore_errors=True)
        for name in names:
            step = _STEP.match(name)
            if step and int(step[2]) == newest.get(step[1]):
                (self._pins / name).parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OSError):  # it is deleted, or there are no links here
                    os.link(self._root / name, self._pins / name)

    def _send(self, name: str) -> bool:
        """Publishes a file; whether it was still there."""
        manifest = f"{_step_of(name)}manifest.json"
        if _step_of(name) and name != manifest and manifest in self._known:
            self._place.delete(manifest)  # of a checkpoint that is written anew
            del self._known[manifest]
        root = self._pins if (self._pins / name).exists() else self._root
        state = self._state(name, root)
        if state is None or not self._place.send(name, root / name):
            return False
        self._known[name] = (*state, "")
        return True

    def _changed(self) -> list[str]:
        """Files that are not published as they are, sorted."""
        states = {name: self._state(name) for name in self._files()}
        return sorted(
            name
            for name, state in states.items()
            if state is not None and self._known.get(name, ())[:2] != state
        )

    def _files(self) -> list[str]:
        """All files of the mirror that are, or will be, published.

        What lies in a folder is seen before what lies in the folders in it.
        """
        found, start = [], len(str(self._root)) + 1
        for folder, _, names in os.walk(self._root):
            above = f"{folder[start:]}/" if len(folder) > start else ""
            found += [above + name for name in names]
        return [name for name in found if not _OWN.match(name)]

    def _delete(self, name: str) -> None:
        """Deletes a file of the mirror, and the folders above it that are empty then."""
        path = self._root / name
        path.unlink()
        for folder in path.parents:
            if folder == self._root or any(folder.iterdir()):
                return
            folder.rmdir()

    def _state(self, name: str, root: Path | None = None) -> tuple[int, int] | None:
        try:
            return self._stated(name, root)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _stated(self, name: str, root: Path | None = None) -> tuple[int, int]:
        status = os.stat(f"{root or self._root}/{name}")
        return status.st_size, status.st_mtime_ns

    def _save(self) -> None:
        write_json(self._record, self._known)


def _step_of(name: str) -> str:
    """The folder of the checkpoint that a file belongs to; '': of none."""
    found = _STEP.match(name)
    return found[0] if found else ""


def _order(name: str) -> tuple[int, int, bool, str]:
    """What is published first: what counts on others last, newer checkpoints before older ones."""
    step = _STEP.match(name)
    if step:
        return 1, -int(step[2]), bool(_MANIFEST.fullmatch(name)), name
    if not _LAST.match(name):
        return 0, 0, False, name
    return 2 + (not name.endswith("/done.json")) + (not name.startswith("stages/")), 0, False, name
