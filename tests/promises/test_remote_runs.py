"""A run whose workdir, images or weights lie in a bucket is the run of local ones.

The server is moto's, with the API of S3; the client is s3fs, as of any user of S3.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from support import folder_of, saved, steps_in, tiny_config

from hpt_jax import checkpoints, main, mirror, run
from hpt_jax.errors import UserError
from hpt_jax.remote import Place
from hpt_jax.signals import Stop
from hpt_jax.telemetry.display import Display
from hpt_jax.weights import export, load
from hpt_jax.workdir import write_json

CONFIG = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_remote_runs import config_of

def get_config():
    return config_of({images!r})
"""
# In the third step of the target's stage: says so, and takes long.
SLOW = """
import sys, time
from hpt_jax import main, mirror, training
mirror.LOOK_SECONDS = 0.2
take = training.Training.take
def slow(self, carry, batch, step):
    if self.stage.name == "target" and step == 2:
        time.sleep(3600)
    return take(self, carry, batch, step)
training.Training.take = slow
sys.exit(main.main(sys.argv[1:]))
"""
# Takes its time for each step, and does not wait long for a lease.
UNSTEADY = """
import sys, time
from hpt_jax import main, mirror, training
mirror.LOOK_SECONDS, mirror.BEAT_SECONDS, mirror.EXPIRES_SECONDS = 0.1, 0.3, 2.0
take = training.Training.take
def slow(self, carry, batch, step):
    time.sleep(0.5)
    return take(self, carry, batch, step)
training.Training.take = slow
sys.exit(main.main(sys.argv[1:]))
"""
LIMIT_SECONDS = 240.0


def config_of(data_dir: str) -> Any:
    """Two stages of a few steps; each second one is saved."""
    config = tiny_config(Path("/"))
    config.data_dir = data_dir
    config.save_every_steps = 2
    config.target = "folder:target"
    config.evaluations = ("knn",)
    config.stages.base = dict(dataset="folder:base", steps=2)
    config.stages.target = dict(dataset="folder:target", steps=4)
    config.arms["B+T"] = ("base", "target")
    return config


@pytest.fixture(scope="module", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """S3 on this machine, for this process and those that it starts; and a cache of one's own."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "something")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, str(tmp_path_factory.mktemp("aws") / "none"))
        patch.setenv("HPT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    server.stop()


@pytest.fixture
def bucket() -> str:
    """The address of a new one."""
    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that expire within the patience of a test."""
    monkeypatch.setattr(mirror, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(mirror, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(mirror, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(mirror, "EXPIRES_SECONDS", 4.0)


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run to which nothing is remote."""
    workdir = tmp_path_factory.mktemp("local")
    run.run(config_of(str(images)), workdir)
    return workdir


def forget_mirror(workdir: str) -> None:
    """Goes to another machine."""
    shutil.rmtree(mirror.home_of(workdir).parent)


def download(workdir: str, folder: Path) -> Path:
    """What is published, file by file."""
    place = Place(workdir, "--workdir")
    for name in place.listing():
        place.fetch(name, folder / name)
    return folder


def assert_same(images: Path, got: Path, wanted: Path) -> None:
    """The same results, curves and checkpoints, bit for bit; each checkpoint is whole."""
    assert (got / "results.csv").read_bytes() == (wanted / "results.csv").read_bytes()
    config = config_of(str(images))
    one, other = folder_of(config, got, "B+T"), folder_of(config, wanted, "B+T")
    assert one.is_done
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    assert one.measures.read_bytes() == other.measures.read_bytes()
    assert steps_in(one.checkpoints) == steps_in(other.checkpoints) == [2, 4]
    for part in ("backbone", "state", "totals"):
        expected = saved(other, part)
        for name, value in saved(one, part).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_run_in_a_bucket_equals_a_local_one(
    bucket: str, images: Path, local: Path, tmp_path: Path
) -> None:
    workdir = f"{bucket}/runs/tiny"
    run.run(config_of(str(images)), workdir)
    published = download(workdir, tmp_path / "published")
    assert_same(images, published, local)
    assert (published / "report" / "index.html").is_file()
    assert not list(published.rglob("lock"))

    # All is done, also for another machine, and nothing is done again.
    forget_mirror(workdir)
    before = Place(workdir, "--workdir").listing()
    run.run(config_of(str(images)), workdir)
    after = Place(workdir, "--workdir").listing()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not {name for name in changed if name.startswith("stages/")}


def test_a_dry_run_needs_the_small_files_alone(
    bucket: str, images: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, place = f"{bucket}/run", Place(f"{bucket}/run", "--workdir")
    for path in local.rglob("*.json"):
        place.send(path.relative_to(local).as_posix(), path)
    config = config_of(str(images))
    config.dry_run = True
    before = place.listing()
    run.run(config, workdir)
    assert place.listing() == before
    assert not mirror.home_of(workdir).exists()
    assert "1 of 1 done" in capsys.readouterr().out


def test_another_machine_goes_on_from_what_a_vanished_one_has_published(
    bucket: str, images: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, file = f"{bucket}/run", tmp_path / "config.py"
    file.write_text(CONFIG.format(here=str(Path(__file__).parent), images=str(images)))
    stage = folder_of(config_of(str(images)), Path(""), "B+T").path.as_posix()
    place = Place(workdir, "--workdir")
    with (tmp_path / "told").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, f"--config={file}", f"--workdir={workdir}"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while place.entry(f"{stage}/checkpoints/2/manifest.json") is None:
            assert process.poll() is None, (tmp_path / "told").read_text()
            assert time.monotonic() < deadline, (tmp_path / "told").read_text()
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    published = download(workdir, tmp_path / "then")
    assert checkpoints.newest_whole(published / stage / "checkpoints") == 2

    forget_mirror(workdir)
    run.run(config_of(str(images)), workdir)
    told = capsys.readouterr().out
    assert "is taken over" in told
    assert "target-" in told
    assert "continues after step 2" in told
    assert "base-" not in told.partition("continues after")[0].partition("time left")[2]
    assert_same(images, download(workdir, tmp_path / "published"), local)


def test_images_and_weights_in_a_bucket_give_the_stages_of_local_ones(
    bucket: str, images: Path, local: Path, tmp_path: Path
) -> None:
    place = Place(f"{bucket}/sets", "dataset")
    for path in images.rglob("*.png"):
        place.send(path.relative_to(images).as_posix(), path)
    base = folder_of(config_of(str(images)), local, "B+T").path.parent
    base = next(base.glob("base-*"))
    place = Place(f"{bucket}/weights/{base.name}", "init")
    for path in base.rglob("*"):
        if path.is_file():
            place.send(path.relative_to(base).as_posix(), path)

    def ids(config: Any) -> list[str]:
        return [stage.id for stage in run.make_plan(config).stages]

    wanted = ids(config_of(str(images)))
    assert ids(config_of(f"{bucket}/sets")) == wanted  # by the listing alone
    rows = run.run(config_of(f"{bucket}/sets"), tmp_path / "run")
    assert ids(config_of(f"{bucket}/sets")) == wanted  # of the copy
    assert_same(images, tmp_path / "run", local)
    assert rows

    for start in (str(base), place.address):
        config = config_of(str(images))
        config.stages.base = dict(init=start, trainable="nothing")
        config.arms["B"] = ("base",)
        config.evaluations = ()
        config.dry_run = True
        run.run(config, tmp_path / "dry")
        wanted.append(ids(config)[0])
    assert wanted[-1] == wanted[-2]


def test_a_run_does_not_start_from_what_it_exports(
    bucket: str, images: Path, local: Path, tmp_path: Path
) -> None:
    config, workdir = config_of(str(images)), f"{bucket}/run"
    stage = folder_of(config, local, "B+T")
    facts = load.inspect(str(stage.path))
    assert facts is not None
    file = export.export_backbone(load.load_stage(stage), facts, tmp_path)
    Place(workdir, "init").send("export/backbone.safetensors", file)
    config.export = "B+T"
    for start in ("export", "export/backbone.safetensors"):
        config.stages.base = dict(init=f"{workdir}/{start}", trainable="nothing")
        with pytest.raises(UserError, match="this run does not overwrite"):
            run.run(config, workdir)


@pytest.mark.slow
def test_a_run_that_vanishes_again_and_again_equals_an_undisturbed_one(
    bucket: str, images: Path, local: Path, tmp_path: Path
) -> None:
    workdir, file = f"{bucket}/run", tmp_path / "config.py"
    file.write_text(CONFIG.format(here=str(Path(__file__).parent), images=str(images)))
    rng, codes = np.random.default_rng(0), []
    while codes[-3:] != [0] * 3:
        process = subprocess.Popen(
            [sys.executable, "-c", UNSTEADY, f"--config={file}", f"--workdir={workdir}"],
            stdout=subprocess.DEVNULL,
        )
        # Shorter than a run takes, at first; the third one in a row that ends is the last.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(1, 4 + 2 * len(codes)))
        process.kill()
        codes.append(process.wait())
        assert codes[-1] in (0, -signal.SIGKILL)
        if rng.random() < 0.5:
            shutil.rmtree(mirror.home_of(workdir).parent, ignore_errors=True)
    print(f"{codes.count(-signal.SIGKILL)} kills")
    assert codes.count(-signal.SIGKILL) >= 3
    assert_same(images, download(workdir, tmp_path / "published"), local)


def command(workdir: str, images: Path, tmp_path: Path, *more: str) -> int:
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(here=str(Path(__file__).parent), images=str(images)))
    return main.main([f"--config={file}", f"--workdir={workdir}", *more])


def test_a_second_machine_is_refused_while_the_first_one_lives(
    bucket: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, place = f"{bucket}/run", Place(f"{bucket}/run", "--workdir")
    first = mirror.Lease(place, tmp_path, Display(quiet=True), Stop())
    with first.held():
        assert command(workdir, images, tmp_path) == 2
    told = capsys.readouterr().err
    assert "no other run works, but process" in told
    assert "Traceback" not in told
    assert [*place.listing()] == ["lock.json"]


@pytest.mark.parametrize(
    ("workdir", "told"),
    [
        ("s3://no-such-bucket/run", "the service says: The specified bucket does not exist"),
        ("s3://a bucket/run", "Invalid bucket name"),
        ("s4://bucket/run", "a protocol that fsspec knows. Did you mean 's3'?"),
        ("adl://bucket/run", "pip install adlfs"),
    ],
)
def test_a_workdir_that_cannot_be_is_one_message(
    workdir: str, told: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(workdir, images, tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"--workdir = '{workdir}'")
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "more", ["data_dir=s3://no-such-bucket/sets", "stages.base.init=s3://no/x"]
)
def test_images_and_weights_that_cannot_be_had_are_one_message(
    more: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(str(tmp_path / "run"), images, tmp_path, f"--config.{more}") == 2
    assert "The specified bucket does not exist" in capsys.readouterr().err


def test_without_credentials_the_service_says_so(
    bucket: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert command(f"{bucket}/run", images, tmp_path) == 2
    assert "Unable to locate credentials" in capsys.readouterr().err


def test_what_a_service_does_not_take_is_told_in_the_end_and_kept(
    bucket: str,
    images: Path,
    local: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_training: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir, place = f"{bucket}/run", Place(f"{bucket}/run", "--workdir")
    monkeypatch.setattr("hpt_jax.remote._WAITS", (0.1,))
    monkeypatch.setattr(mirror, "LOOK_SECONDS", 3600.0)

    def loses_the_bucket(asked: Any, root: Path, display: Any) -> list[Any]:
        write_json(root / "seen.json", {})
        fsspec.filesystem("s3").rm(bucket, recursive=True)
        return []

    monkeypatch.setattr(run, "report", loses_the_bucket)
    assert command(workdir, images, tmp_path) == 2
    err = capsys.readouterr().err
    assert "The specified bucket does not exist" in err
    assert "not published yet" in err
    assert (mirror.home_of(workdir) / "seen.json").is_file()
    assert place.address == workdir
