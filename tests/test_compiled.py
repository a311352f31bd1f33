"""The compilation cache: what a kill or a disk damaged is removed, and compiled once more."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpt_jax import compiled
from hpt_jax.errors import UserError
from hpt_jax.workdir import read_json

HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
COUNT = 4


@pytest.fixture(autouse=True)
def no_shared_programs(monkeypatch):
    """Else what all tests share would be used, and not what is asked for."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that does what a new process would: (results, hits, misses, lines told)."""
    counts: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
    monkeypatch.setattr(compiled, "MIN_SECONDS", 0.0)
    set_here = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in set_here}

    def begin():
        counts.clear()
        jax.clear_caches()
        told: list[str] = []
        compiled.keep(tmp_path, told.append)
        x = jnp.linspace(0.0, 1.0, 64)
        made = [jax.jit(lambda x, n=n: jnp.sort(jnp.sin(x * n)).cumsum())(x) for n in range(COUNT)]
        return np.stack(made), counts[HIT], counts[MISS], told

    yield begin
    for name, value in before.items():
        jax.config.update(name, value)
    compiled.compilation_cache.reset_cache()


def entries(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.glob("*-cache"))}


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "all but the last byte": lambda content: content[:-1],
    "a bit of the first byte": lambda content: flipped(content, 0),
    "a bit in the middle": lambda content: flipped(content, len(content) // 2),
    "a bit of the last byte": lambda content: flipped(content, -1 + len(content)),
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("known", [False, True])
def test_damaged_entries_are_compiled_once_more_and_the_next_start_is_warm(
    start, tmp_path, known, recwarn
):
    expected, hits, misses, told = start()
    assert (hits, told) == (0, [])
    assert misses >= COUNT
    whole = entries(tmp_path)
    assert len(whole) == misses
    for damage in DAMAGES.values():
        if known:  # looked at while it was whole
            assert start()[1:] == (misses, 0, [])
        for path, content in whole.items():
            path.write_bytes(damage(content))
        got, *counted, told = start()
        np.testing.assert_array_equal(got, expected)
        assert counted == [0, misses]
        assert len(told) == 1
        assert told[0].startswith(f"note: {misses} damaged programs in {tmp_path} are removed")
        got, *counted = start()
        np.testing.assert_array_equal(got, expected)
        assert counted == [misses, 0, []], "warm"
    assert not [one for one in recwarn if "compilation cache" in str(one.message)]


def test_one_damaged_entry_leaves_the_others(start, tmp_path):
    _, _, misses, _ = start()
    path, content = next(iter(entries(tmp_path).items()))
    path.write_bytes(content[:-1])
    assert start()[1:3] == (misses - 1, 1)


def test_every_cut_and_every_flipped_bit_of_an_entry_is_seen(tmp_path):
    content = zlib.compress(b"a program" * 20)
    path = tmp_path / "x-cache"
    damaged = [content[:cut] for cut in range(len(content))]
    damaged += [flipped(content, place) for place in range(2, len(content))]
    for one in damaged:
        path.write_bytes(one)
        assert compiled.remove_damaged(tmp_path) == 1
        assert not path.exists()
    path.write_bytes(content)
    assert compiled.remove_damaged(tmp_path) == 0
    assert list(read_json(tmp_path / "checked.json")) == ["x-cache"]
    path.write_bytes(zlib.compress(b"another"))  # whole, but not what it was
    assert compiled.remove_damaged(tmp_path) == 1


def test_entries_of_the_other_compression_are_looked_through_too(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    content = zstandard.compress(b"a program" * 20)
    path = tmp_path / "x-cache"
    for cut in range(4, len(content)):
        path.write_bytes(content[:cut])
        assert compiled.remove_damaged(tmp_path) == 1
    path.write_bytes(content)
    assert compiled.remove_damaged(tmp_path) == 0
    path.write_bytes(flipped(content, len(content) - 1))  # such files have no checksum of their own
    assert compiled.remove_damaged(tmp_path) == 1


@pytest.mark.parametrize("record", [b"", b"[]", b'{"x-cache": 1}', b"\xff"])
def test_a_damaged_record_is_made_again(tmp_path, record):
    (tmp_path / "x-cache").write_bytes(zlib.compress(b"a program"))
    (tmp_path / "y-cache").write_bytes(b"")
    (tmp_path / "z-cache").mkdir()
    (tmp_path / "checked.json").write_bytes(record)
    assert compiled.remove_damaged(tmp_path) == 1
    assert list(read_json(tmp_path / "checked.json")) == ["x-cache"]


def test_a_cache_that_the_environment_names_is_used_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "shared"))
    before = jax.config.jax_compilation_cache_dir
    compiled.keep(tmp_path / "own", pytest.fail)
    assert not (tmp_path / "own").exists()
    assert jax.config.jax_compilation_cache_dir == before


def test_a_file_in_place_of_the_cache_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cache: expected a folder, but it is a file"):
        compiled.keep(tmp_path / "cache", pytest.fail)


SHARER = """
import sys, zlib
from pathlib import Path
from hpt_jax import compiled
folder = Path(sys.argv[1])
for turn in range(30):
    for n in range(5):
        try:
            (folder / f"{n}-cache").write_bytes(zlib.compress(b"program" * (1000 * n + 1)))
        except FileNotFoundError:
            pass
    (folder / f"{turn % 5}-cache").write_bytes(b"cut short")
    compiled.remove_damaged(folder)
print("done")
"""


@pytest.mark.slow
def test_two_processes_share_a_cache(tmp_path):
    command = [sys.executable, "-c", SHARER, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate()[0] for one in both] == ["done\n", "done\n"]
    compiled.remove_damaged(tmp_path)
    for content in entries(tmp_path).values():
        zlib.decompress(content)


RUN = """
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, {tests!r})
import jax
from support import tiny_config
from hpt_jax import compiled, run

compiled.MIN_SECONDS = 0.0
counts = Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
config = tiny_config(Path({images!r}))
config.stages.target = dict(dataset="folder:target", steps=4)
config.arms.T = ("target",)
run.run(config, {workdir!r})
print("counted", counts[{hit!r}], counts[{miss!r}])
"""


@pytest.mark.slow
def test_a_run_on_a_cache_of_which_every_entry_is_cut_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "promises"))
    from support import write_images

    write_images(tmp_path / "images" / "target", 3, 12, 16, seed=3)
    workdir, cache = tmp_path / "w", tmp_path / "w" / "compilation_cache"
    code = RUN.format(
        tests=str(Path(__file__).parent / "promises"),
        images=str(tmp_path / "images"),
        workdir=str(workdir),
        hit=HIT,
        miss=MISS,
    )

    def trained():
        """(the stage's metrics, what was told); nothing but the cache is left of runs before."""
        shutil.rmtree(workdir / "stages", ignore_errors=True)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "compilation cache" not in done.stderr
        (metrics,) = workdir.glob("stages/target-*/metrics.csv")
        return metrics.read_bytes(), done.stdout

    expected, told = trained()
    count = len(entries(cache))
    assert count
    assert f"counted 0 {count}\n" in told
    for path, content in entries(cache).items():
        path.write_bytes(content[: len(content) // 2])
    metrics, told = trained()
    assert metrics == expected
    assert f"note: {count} damaged programs" in told
    metrics, told = trained()
    assert metrics == expected
    assert "damaged" not in told
    assert f"counted {count} 0\n" in told
