"""Mistakes on the command line, in the config, in data and in weights: one message, exit code 2."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from hpt_jax import run
from hpt_jax.main import main, parse
from hpt_jax.models.backbone import abstract_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.signals import SIGNALS
from hpt_jax.weights.export import export_backbone

CONFIG = """
from hpt_jax.config import default_config

def get_config():
    config = default_config()
    config.image_size, config.batch_size, config.moco.queue_size = 16, 8, 8
    config.model.arch, config.model.width, config.model.stem = "resnet10", 4, "small"
    config.parallel.devices = 1
    config.stages.target = dict(dataset="folder:images", steps=2)
    config.arms.T = ("target",)
    {lines}
    return config
"""


def write_images(folder, count=12, channels=1):
    folder.mkdir(parents=True, exist_ok=True)
    shape = (16, 16) if channels == 1 else (16, 16, channels)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture
def ask(tmp_path, capsys, monkeypatch):
    """A function that runs the command, which must end with 2, and returns stderr's lines."""
    monkeypatch.chdir(tmp_path)

    def command(*flags, lines="pass", text=None):
        (tmp_path / "c.py").write_text(CONFIG.format(lines=lines) if text is None else text)
        capsys.readouterr()
        assert main(["--config", "c.py", "--workdir", "w", *flags]) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told.splitlines()

    return command


def one(lines):
    """The only line."""
    assert len(lines) == 1, lines
    return lines[0]


# Flags


def test_missing_flags_are_reported_together(capsys):
    assert main([]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == ["--config", "--workdir"]


@pytest.mark.parametrize(
    ("flags", "field", "fix"),
    [
        (["--wrokdir", "x"], "--wrokdir", "'--workdir'"),
        (["--wrokdir=x"], "--wrokdir", "'--workdir'"),
        (["--conifg.batch_size=3"], "--conifg.batch_size", "'--config"),
        (["junk"], "junk", "--workdir"),
        (["-v"], "-v", "--workdir"),
        (["--config.batch_size"], "--config.batch_size", "--config.batch_size=VALUE"),
        (["--workdir"], "--workdir", "--workdir=VALUE"),
    ],
)
def test_a_wrong_flag_is_named_with_its_fix(ask, flags, field, fix):
    line = one(ask(*flags))
    assert line.startswith(f"{field}: expected")
    assert fix in line


@pytest.mark.parametrize("empty", ["--config=", "--workdir="])
def test_an_empty_flag_is_a_mistake(ask, empty):
    assert one(ask(empty)).startswith(empty.rstrip("="))


def test_values_come_after_an_equals_sign_or_as_the_next_word():
    flags, overrides = parse(
        ["--config", "c", "--config.a.b", "-1", "--workdir=w=x", "--config.c=", "--config.d=e=f"]
    )
    assert flags == {"--config": "c", "--workdir": "w=x"}
    assert overrides == [("a.b", "-1"), ("c", ""), ("d", "e=f")]


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet_is_a_flag_without_a_value(ask, flag):
    flags, _ = parse(["--config", "c", flag, "--workdir", "w"])
    assert flags == {"--config": "c", "--quiet": "", "--workdir": "w"}
    assert one(ask("--quiet=yes")).startswith("--quiet: expected a known flag")


@pytest.mark.usefixtures("images")
def test_quiet_tells_warnings_results_and_where_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    (tmp_path / "c.py").write_text(CONFIG.format(lines="config.input.max_unreadable = 0.5"))
    assert main(["-q", "--config", "c.py", "--workdir", "w"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    kinds = [re.match(r"note|skipped|results|report", line) for line in lines]
    assert all(kinds), lines
    assert [kind[0] for kind in kinds].count("skipped") == 1
    assert [line.partition(":")[0] for line in lines[-2:]] == ["results", "report"]
    assert str(tmp_path / "w" / "report" / "index.html") in lines[-1]


def test_a_flag_without_value_does_not_swallow_the_next(capsys):
    assert main(["--config.dry_run", "--config", "c", "--workdir", "w"]) == 2
    assert one(capsys.readouterr().err.splitlines()).startswith(
        "--config.dry_run: expected a value"
    )


def test_help_needs_neither_flags_nor_jax():
    program = (
        "import sys; from hpt_jax.main import main; code = main(['--help']); "
        "print(code, sorted({'jax', 'numpy', 'tensorflow', 'ml_collections'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "--config.FIELD=VALUE" in done.stdout


def test_the_command_ends_with_2_and_no_traceback(tmp_path):
    (tmp_path / "c.py").write_text(CONFIG.format(lines="config.batchsize = 3"))
    command = [sys.executable, "-m", "hpt_jax.main", "--config", "c.py", "--workdir", "w"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "batchsize: expected a known field. Did you mean 'batch_size'?" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.py"]


# Config files


def test_an_absent_config_file_is_named(ask):
    assert "absent.py" in one(ask("--config", "absent.py"))


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("x = 1\n\ny = 1 / 0\n", "c.py:3", "ZeroDivisionError"),
        ("def get_config():\n    return nix\n", "c.py:2", "NameError: name 'nix'"),
        ("def get_config(:\n", "c.py:1", "SyntaxError"),
        ("import nixmodule\n", "c.py:1", "No module named 'nixmodule'"),
        ("x = 1\n", "c.py", "get_config()"),
        ("def get_config():\n    return {'batch_size': 3}\n", "c.py", "dict"),
        ("def get_config():\n    pass\n", "c.py", "NoneType"),
    ],
)
def test_a_broken_config_file_is_named_with_its_line(ask, text, place, said):
    line = one(ask(text=text))
    assert line.startswith((f"{place}:", f"{place} ="))
    assert said in line


def test_all_mistakes_of_a_config_are_told_in_one_go(ask):
    lines = "config.modle = 3; config.optimizer.momentum = 2.0; config.stages.target.stpes = 3"
    told = ask("--config.stages.targt.steps=3", "--config.seeds=1,1", lines=lines)
    assert sorted(line.split(":")[0].split(" ")[0] for line in told) == [
        "config.stages.targt",
        "modle",
        "optimizer.momentum",
        "seeds",
        "stages.target.stpes",
    ]


# Devices and data


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--config.parallel.devices=9"], "parallel.devices"),
        (
            ["--config.parallel.devices=0", "--config.batch_size=12", "--config.model.bn_groups=3"],
            "model.bn_groups",
        ),
        (
            ["--config.parallel.devices=8", "--config.batch_size=12", "--config.model.bn_groups=4"],
            "batch_size",
        ),
    ],
)
def test_a_batch_that_does_not_fit_the_devices_is_refused(ask, flags, field):
    lines = ask("--config.moco.queue_size=16", *flags)
    assert any(line.startswith(f"{field} = ") for line in lines)
    assert all("devices" in line for line in lines)


def test_absent_and_empty_folders_are_named(ask, tmp_path):
    assert str(tmp_path / "data" / "images") in one(ask(f"--config.data_dir={tmp_path / 'data'}"))
    (tmp_path / "images").mkdir()
    assert "has none" in one(ask())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("floder:images", "folder:PATH"),
        ("images", "folder:PATH"),
        ("folder:", "folder:PATH"),
        ("tfds:mnits", "'mnist'"),
        ("package:mnits", "'mnist'"),
    ],
)
def test_an_unknown_kind_of_dataset_is_refused(ask, name, said):
    line = one(ask(f"--config.stages.target.dataset={name}"))
    assert name in line
    assert said in line


def test_unreadable_images_are_named(ask, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.jpg").write_text("<html>not found</html>")
    told = "\n".join(ask())
    assert str(tmp_path / "images" / "cat.jpg") in told or "images/cat.jpg" in told


def test_a_target_without_labels_is_refused(ask, tmp_path):
    write_images(tmp_path / "images")
    assert one(ask("--config.target=folder:images")).startswith("target = 'folder:images'")


# Weights


def write_export(folder, channels=1, arch="resnet10", width=4):
    """An exported backbone; its numbers do not matter here."""
    shapes = abstract_backbone(ResNet(arch, width, "small", 2), channels)
    backbone = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    facts = {
        "arch": arch, "width": width, "stem": "small", "stem_stride": 2,
        "channels": channels, "image_size": 16, "lineage": "random",
    }  # fmt: skip
    return export_backbone(backbone, facts, folder)


def write_partial(folder):
    """The tensors of an export but for layer4, with nothing said of them."""
    whole = load_file(write_export(folder / "partial"))
    save_file({k: v for k, v in whole.items() if "layer4" not in k}, folder / "part.safetensors")
    return folder / "part.safetensors"


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images")


INIT = "--config.stages.target.init"


@pytest.mark.usefixtures("images")
def test_files_that_are_no_weights_are_named(ask, tmp_path):
    path = write_export(tmp_path / "export")
    whole = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "html.safetensors").write_text("<!DOCTYPE html><html>404</html>")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    save_file({"conv1.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    for name in ("absent", "cut", "html", "empty", "other"):
        assert f"{name}.safetensors" in one(ask(f"{INIT}={name}.safetensors"))
    assert "'folder'" in one(ask(f"{INIT}=folder"))


@pytest.mark.usefixtures("images")
def test_weights_of_another_architecture_say_of_which(ask, tmp_path):
    line = one(ask(f"{INIT}={write_export(tmp_path / 'a', arch='resnet18')}"))
    assert line.startswith("stages.target.init = ")
    assert "resnet10, width 4" in line
    assert "they are of resnet18, width 4" in line
    assert "--config.model.arch=resnet18" in line
    line = one(ask(f"{INIT}={write_export(tmp_path / 'b', width=8)}"))
    assert "--config.model.width=8" in line
    partial = write_partial(tmp_path)
    line = one(ask(f"{INIT}={partial}"))
    assert "--config.model.stem_stride=1 (or import it with --stem-stride 2" in line
    line = one(ask(f"{INIT}={partial}", "--config.model.stem_stride=1"))
    assert "layer4.0.bn1.bias [32] is missing" in line
    assert "--config.stages.target.init_missing=layer4" in line


@pytest.mark.usefixtures("images")
def test_a_parent_of_other_channels_is_refused_before_it_is_trained(ask, tmp_path):
    write_images(tmp_path / "colour", channels=3)
    lines = "config.stages.child = dict(dataset='folder:colour', steps=2)"
    line = one(ask("--config.arms.T=target,child", lines=lines))
    assert line.startswith("stages.child = ")
    assert "take images of 1 channels, the data has 3" in line
    assert not list((tmp_path / "w").glob("stages/*/checkpoints"))


@pytest.mark.usefixtures("images")
def test_a_parent_of_another_network_is_refused_with_what_to_set(ask):
    lines = "config.stages.child = dict(dataset='folder:images', steps=2)"
    network = {"arch": "resnet10", "width": 4, "stem": "small"}
    for field, other in [("arch", "resnet18"), ("width", 8), ("stem", "imagenet")]:
        override = f"--config.stages.child.model.{field}={other}"
        line = one(ask("--config.arms.T=target,child", override, lines=lines))
        assert line.startswith("stages.child = 'stage target'")
        assert line.endswith(f"To take them as they are: --config.model.{field}={network[field]}")


def test_data_is_looked_at_before_weights(ask):
    assert "images" in one(ask(f"{INIT}=absent.safetensors"))


# The workdir


def test_a_workdir_that_is_a_file_is_refused(ask, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        line = one(ask(f"--workdir={folder}"))
        assert line.startswith(f"--workdir = '{folder}'")
        assert str(tmp_path / "file") in line


# What is no mistake


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(run, "run", broken)
    (tmp_path / "c.py").write_text(CONFIG.format(lines="pass"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w")])


def test_the_command_is_kept_beside_the_plan(tmp_path, monkeypatch):
    write_images(tmp_path / "images")
    (tmp_path / "c.py").write_text(CONFIG.format(lines="pass"))
    monkeypatch.chdir(tmp_path)
    # Stopped where the plan has just been written.
    monkeypatch.setattr(run.estimate, "seconds_left", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--config", "c.py", "--workdir=w", f"--config.data_dir={tmp_path}"])
    (path,) = (tmp_path / "w" / "plans").glob("*.json")
    assert json.loads(path.read_text())["command"] == {
        "config": "c.py",
        "workdir": "w",
        "overrides": [["data_dir", str(tmp_path)]],
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_128_and_its_number(tmp_path, monkeypatch, capsys, number):
    def stopped(*args, stop, **kwargs):
        with stop.deferred():
            stop.hold()
            os.kill(os.getpid(), number)
            until = time.monotonic() + 60
            while not stop.asked and time.monotonic() < until:
                time.sleep(0.01)

    # Whoever started the tests may have set it to be ignored.
    inherited = signal.signal(number, signal.default_int_handler)
    monkeypatch.setattr(run, "run", stopped)
    (tmp_path / "c.py").write_text(CONFIG.format(lines="pass"))
    before = [signal.getsignal(one) for one in SIGNALS]
    code = main(["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w")])
    after = [signal.getsignal(one) for one in SIGNALS]
    signal.signal(number, inherited)
    assert code == 128 + number
    assert "the same command continues" in capsys.readouterr().err
    assert after == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_to_is_no_bug(tmp_path, monkeypatch, capsys, number):
    place = tmp_path / "w" / "results.csv"

    def failed(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(place))

    monkeypatch.setattr(run, "run", failed)
    (tmp_path / "c.py").write_text(CONFIG.format(lines="pass"))
    assert main(["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w")]) == 2
    said = capsys.readouterr().err
    assert os.strerror(number) in said
    assert "results.csv" in said
    place = tmp_path / "other" / "results.csv"
    if number == errno.EACCES:  # which says nothing of the workdir
        with pytest.raises(PermissionError):
            main(["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w")])


@pytest.mark.parametrize("zeros", [jax.numpy.zeros, np.zeros])
def test_memory_that_does_not_suffice_is_no_bug(tmp_path, monkeypatch, capsys, zeros):
    monkeypatch.setattr(run, "run", lambda *args, **kwargs: jax.block_until_ready(zeros(2**46)))
    (tmp_path / "c.py").write_text(CONFIG.format(lines="pass"))
    assert main(["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w")]) == 2
    assert "memory: expected sizes that fit into memory" in capsys.readouterr().err


def test_other_errors_of_the_runtime_are_bugs(tmp_path, monkeypatch):
    def failed(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(run, "run", failed)
    (tmp_path / "c.py").write_text(CONFIG.format(lines="pass"))
    with pytest.raises(jax.errors.JaxRuntimeError):
        main(["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w")])


@pytest.mark.usefixtures("images")
def test_a_refused_run_leaves_the_last_plan_in_place(ask, tmp_path):
    plans = tmp_path / "w" / "plans"
    plans.mkdir(parents=True)
    (plans / "hpt.json").write_text(json.dumps({"kept": True}))
    ask(f"{INIT}=absent.safetensors")
    assert json.loads((plans / "hpt.json").read_text()) == {"kept": True}


def test_double_precision_needs_a_jax_that_has_it(ask, tmp_path):
    write_images(tmp_path / "images")
    line = one(ask("--config.model.dtype=float64"))
    assert line.startswith("model.dtype = 'float64'")
    assert "JAX_ENABLE_X64=1" in line


@pytest.mark.parametrize(("trained", "tested"), [(1, 3), (3, 1)])
def test_a_target_of_other_channels_is_refused_before_training(ask, tmp_path, trained, tested):
    write_images(tmp_path / "images", channels=trained)
    for label in ("a", "b"):
        write_images(tmp_path / "target" / label, channels=tested)
    line = one(ask("--config.target=folder:target"))
    assert line.startswith("target = 'folder:target'")
    assert "--config.input.channels=3" in line
    assert not (tmp_path / "w" / "stages").exists()
