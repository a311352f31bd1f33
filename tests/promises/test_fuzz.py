"""Mutated images, configs and config files: the command ends with 0 or with a message and 2."""

from __future__ import annotations

import ast
import io
import random
from collections.abc import Callable
from pathlib import Path

import bad_input
import imagecodecs
import numpy as np
import pytest
import tifffile
from bad_input import animated, encoded, pixels, run_command
from PIL import Image

from hpt_jax.config import default_config
from hpt_jax.data.decode import decode
from hpt_jax.data.images import Unreadable

# How many images, configs and config files; by `pytest -m slow` as well.
QUICK, SLOW = (240, 300, 200), (2000, 1000, 1000)
CONFIGS = Path(__file__).parents[2] / "configs"


def check(arguments: list[str], what: object) -> int:
    """Runs the command, which may end with 0 or 2; a bug is raised."""
    try:
        outcome = run_command(arguments)
    except BaseException as error:
        error.add_note(f"mutation: {what}")
        raise
    assert outcome.exit in (0, 2), what
    assert "Traceback" not in outcome.out + outcome.err, what
    assert ("expected" in outcome.err) == (outcome.exit == 2), (what, outcome.err)
    return outcome.exit


# Images


def _mode(format: str, mode: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(1, 24, 20)).convert(mode).save(file, format, **options)
    return file.getvalue()


def _tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


DEEP = pixels(2, 24, 20, np.uint16)
# In one folder: images of 8 bits here, of 16 there. TIFF's own header may turn one into the other.
SEEDS: dict[str, list[bytes]] = {
    "jpg": [encoded("JPEG"), encoded("JPEG", progressive=True, exif=bad_input.EXIF),
            _mode("JPEG", "CMYK"), _mode("JPEG", "L")],
    "png": [encoded("PNG"), _mode("PNG", "P"), _mode("PNG", "RGBA", exif=bad_input.EXIF),
            _mode("PNG", "1"), animated("PNG")],
    "gif": [encoded("GIF"), animated("GIF")],
    "webp": [encoded("WEBP"), encoded("WEBP", lossless=True), animated("WEBP")],
    "bmp": [encoded("BMP"), _mode("BMP", "P"), _mode("BMP", "1")],
    "ppm": [encoded("PPM"), _mode("PPM", "L"), _mode("PPM", "1")],
    "tif": [encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), _mode("TIFF", "CMYK"),
            encoded("TIFF", compression="jpeg"), _mode("TIFF", "1", compression="group4")],
    "tiff": [_tiff(DEEP, photometric="rgb", compression="deflate"), _tiff(DEEP[:, :, 0]),
             _tiff(np.tile(DEEP[:, :, 0], (2, 2)), tile=(16, 16), compression="lzw", bigtiff=True)],
    "png 16": [imagecodecs.png_encode(DEEP), imagecodecs.png_encode(DEEP[:, :, 0].copy())],
}  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, cut off, moved, or with the end of another format."""
    changed, size = bytearray(data), len(data)
    kind = rng.choice(["bytes", "header", "word", "cut", "move", "splice"])
    if kind == "bytes":
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(size)] = rng.randrange(256)
    elif kind == "header":
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(min(size, 64))] = rng.choice([0, 1, 127, 128, 255])
    elif kind == "word":
        place = rng.randrange(size)
        changed[place : place + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\0\0\1"])
    elif kind == "cut":
        del changed[rng.randrange(size) :]
    elif kind == "move":
        place, source = rng.randrange(size), rng.randrange(size)
        changed[place : place + 60] = changed[source : source + rng.randint(1, 60)]
    else:
        other = rng.choice(rng.choice(list(SEEDS.values())))
        changed[rng.randrange(size) :] = other[rng.randrange(len(other)) :]
    return bytes(changed)


def fuzz_images(root: Path, count: int, per_folder: int) -> None:
    rng = random.Random(0)
    (root / "c.py").write_text(bad_input.CONFIG)
    exits = set()
    for number in range(count // per_folder):
        kind = list(SEEDS)[number % len(SEEDS)]
        folder = root / f"images{number}"
        folder.mkdir()
        for index in range(per_folder):
            path = folder / f"{index}.{kind.split()[0]}"
            path.write_bytes(mutated(rng.choice(SEEDS[kind]), rng))
            check_decoded(path)
        exits.add(
            check(
                [
                    f"--config={root / 'c.py'}",
                    f"--workdir={root / f'w{number}'}",
                    f"--config.stages.target.dataset=folder:{folder}",
                    "--config.input.max_unreadable=0.99",
                    "--config.input.channels=3",
                    f"--config.input.pipeline={rng.choice(['auto', 'host'])}",
                ],
                (kind, number),
            )
        )
    assert 0 in exits


def check_decoded(path: Path) -> None:
    """A folder ends at its first image of another depth or band count; this sees every one."""
    try:
        array = decode(str(path))
    except Unreadable:
        return
    assert array.dtype in (np.uint8, np.uint16)
    assert array.ndim == 3
    assert array.size


@pytest.mark.usefixtures("no_training")
def test_mutated_images(tmp_path: Path) -> None:
    fuzz_images(tmp_path, QUICK[0], QUICK[0] // len(SEEDS))


@pytest.mark.slow
def test_many_mutated_images(tmp_path: Path) -> None:
    fuzz_images(tmp_path, SLOW[0], 25)


# Configs

# What a config file may write behind an equals sign, right or wrong.
VALUES = (
    "None", "True", "-1", "0", "1", "2", "3", "7", "1.5", "10**9", "10**12", "10**30", "-10**30",
    "10**400", "1e308", "-1e308", "1e-320", "float('nan')", "float('inf')", "''", "'x'", "' '",
    "'\\0'", "'\\ud800'", "'\\x1b[2J'", "'x' * 100_000", "'~nobody/x'", "'folder:'", "':'",
    "'folder:' + 'x' * 5000", "'package:digits'", "'package:'", "'../..'", "'random'", "b'x'",
    "()", "[]", "{}", "(1,)", "(0, 0)", "(2, 1)", "((),)", "[[1]]", "[None]", "('target',)",
    "('target', 'target')", "{'a': 1}", "{1: 2}", "{'target': {}}", "object()", "lambda: 0",
    "iter(())", "1j", "range(3)", "set()", "int", "...", "config", "config.model", "loop",
    "config_dict.FieldReference(3)", "config_dict.FieldReference(None, field_type=int)",
    "(config_dict.FieldReference(3),)", "np.float64(3)", "np.int64(3)", "np.zeros(3)",
    "np.array('x')", "np.bool_(True)", "{'steps': {'steps': {'steps': 1}}}",
    "'linear_' + '9' * 5000",
    "('linear_0', 'finetune_99999999999')", "(1e400,)", "[10**400]", "-0.0",
)  # fmt: skip
# What a command line may have behind one.
TEXTS = (
    "", " ", "None", "true", "-1", "0", "1", "3", "1.5", "1e400", "nan", "1_0", "9" * 5000,
    "(" * 5000,
    "-" * 5000 + "1", "()", "(1,", "1,2", "[1, 2]", "{'a': 1}", "x", "'x'", "\0", "\x1b[2J",
    "\ud800",
    "folder:", "folder:/", "a=b", "--", "x" * 100_000, "__import__('os')", "lambda: 0", "b'x'",
    "0x10",
)  # fmt: skip
HEADER = (
    "import numpy as np\nfrom ml_collections import config_dict\nloop = []\nloop.append(loop)\n"
)


def fields() -> list[str]:
    """Every field of the config, sections too, and some of a stage."""

    def walk(values: object, prefix: str) -> list[str]:
        found = []
        for name, value in values.items():  # type: ignore[attr-defined]
            found.append(f"{prefix}{name}")
            if hasattr(value, "items"):
                found += walk(value, f"{prefix}{name}.")
        return found

    top = walk(default_config(), "")
    own = [
        "dataset",
        "splits",
        "subset",
        "steps",
        "trainable",
        "init",
        "init_missing",
        "model.arch",
    ]
    return [*top, *(f"stages.target.{name}" for name in own), "stages.target", "arms.T", "arms.x"]


def misspelt(name: str, rng: random.Random) -> str:
    """A letter more, less or another."""
    place = rng.randrange(len(name))
    return name[:place] + rng.choice(["", "_", "x", "é"]) + name[place + rng.randint(0, 1) :]


def fuzz_configs(root: Path, count: int, flags: Callable[[str], list[str]]) -> None:
    rng, exits = random.Random(1), []
    bad_input.good(root)
    path = root / "c.py"
    known = fields()
    for _ in range(count):
        lines, overrides = [], []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            field = rng.choice(known)
            if rng.random() < 0.1:
                field = misspelt(field, rng)
            if rng.random() < 0.3:
                overrides.append(f"--config.{field}={rng.choice(TEXTS)}")
            else:
                lines.append(f"    config.{field} = {rng.choice(VALUES)}\n")
        text = bad_input.CONFIG.replace(
            "    return config\n", "".join(lines) + "    return config\n"
        )
        path.write_text(HEADER + text)
        more = flags(lines[0] if lines else overrides[0])
        arguments = [f"--config={path}", f"--workdir={root / 'w'}", *overrides, *more]
        exits.append(check(arguments, (lines, overrides)))
    assert 0 in exits
    assert 2 in exits


DRY = ["--config.dry_run=True"]
# Which leave a run as short as it is.
SMALL = (
    "0", "1", "2", "3", "5", "8", "24", "0.1", "0.5", "1.0", "1.5", "-1", "1e-320", "1e308", "True",
    "False", "None", "''", "()", "(1,)", "(2, 3)", "(0.5, 1.0)", "(1.0, 0.5)", "(0.1, 0.1)",
    "'resnet18'", "'small'", "'imagenet'", "'simclr'", "'bfloat16'", "'constant'", "'host'",
    "'resident'", "'pmap'", "'batch_norm'", "'statistics'", "'nothing'", "('train',)",
    "('knn', 'linear_6')", "'macro_auroc'", "'crop'", "'T'",
)  # fmt: skip
TRAINED = """
    config.target = config.stages.target.dataset = "folder:sets"
    config.evaluations = ("knn", "linear", "linear_sgd", "finetune_6")
    config.linear_sgd.update(steps=2, batch_size=4, eval_every=1)
    config.finetune.update(steps=(2,), epochs=(), batch_size=4, bn_groups=2, eval_every=1)
"""


def fitting(name: str) -> list[str]:
    """What of `SMALL` is of the type that a field has by default."""
    default: object = default_config()
    for part in name.split("."):
        default = getattr(default, part, None)
    return [text for text in SMALL if type(ast.literal_eval(text)) is type(default)] or [*SMALL]


@pytest.mark.slow
def test_mutated_configs_that_train(tmp_path: Path) -> None:
    """Each mutation of one or two fields to something that the field might take, to its end."""
    rng, exits = random.Random(3), []
    bad_input.good(tmp_path)
    for label in range(3):
        folder = tmp_path / "sets" / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(8):
            image = Image.fromarray(pixels(10 * label + index, 20, 18))
            image.save(folder / f"{index}.png")
    path, known = tmp_path / "c.py", fields()
    for number in range(100):
        chosen = rng.sample(known, rng.choice([1, 2]))
        lines = [f"    config.{name} = {rng.choice(fitting(name))}\n" for name in chosen]
        end = "    return config\n"
        path.write_text(bad_input.CONFIG.replace(end, TRAINED + "".join(lines) + end))
        exits.append(check([f"--config={path}", f"--workdir={tmp_path / f'w{number}'}"], lines))
    assert exits.count(0) > 20
    assert exits.count(2) > 20


def test_mutated_configs(tmp_path: Path) -> None:
    fuzz_configs(tmp_path, QUICK[1], lambda line: DRY)


@pytest.mark.slow
def test_many_mutated_configs(tmp_path: Path) -> None:
    fuzz_configs(tmp_path, SLOW[1], lambda line: DRY)


# Config files

# Of those in configs/, the ones that ask the catalog of TFDS nothing.
SHIPPED = ("adapt.py", "aerial.py", "probes.py", "quickstart.py", "studies/separability.py")
STATEMENTS = (
    b"raise", b"raise KeyError", b"raise SystemExit", b"import sys; sys.exit(1)", b"1 / 0", b"\0",
    b"# \xff", b"import nix", b"from hpt_jax import nix", b"f = lambda: f(); f()", b"print('hi')",
    b"return", b"yield", b"await x", b"del config", b"config = None", b"config.x.y.z = 1", b"\t",
    b"  ",
    b"class E(BaseException): pass\nraise E", b"raise Exception('a\\x1b[2J\\nb')",
    b"x = " + b"(" * 999,
    b"assert False", b"config.lock()", b"config.stages = config", b"exit()", b"raise GeneratorExit",
    b"def get_config(): return 3", b"def get_config(x): pass", b"async def get_config(): pass",
    b"# -*- coding: nix -*-", b"config.data_dir = 3",
    b"raise type('E', (Exception,), {'__str__': None})",
)  # fmt: skip


def mutated_text(text: bytes, rng: random.Random) -> bytes:
    """A config file with a letter or a line too few, too many or out of place, or a statement."""
    kind = rng.choice(["letter", "letters", "line", "twice", "swap", "statement", "cut", "word"])
    lines = text.split(b"\n")
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    at = rng.randrange(len(text))
    if kind == "letter":
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if kind == "letters":
        return text[:at] + text[at + rng.randint(1, 10) :]
    if kind == "cut":
        return text[:at]
    if kind == "word":
        words = text.split()
        return text.replace(rng.choice(words), rng.choice(words))
    if kind == "line":
        del lines[place]
    elif kind == "twice":
        lines.insert(other, lines[place])
    elif kind == "swap":
        lines[place], lines[other] = lines[other], lines[place]
    else:
        indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
        lines.insert(place, indent + rng.choice(STATEMENTS))
    return b"\n".join(lines)


def fuzz_files(root: Path, count: int) -> None:
    rng, exits = random.Random(2), []
    path = root / "c.py"
    for number in range(count):
        text = mutated_text((CONFIGS / SHIPPED[number % len(SHIPPED)]).read_bytes(), rng)
        path.write_bytes(text)
        exits.append(check([f"--config={path}", f"--workdir={root / 'w'}", *DRY], text))
    assert 0 in exits
    assert 2 in exits


def test_mutated_config_files(tmp_path: Path) -> None:
    fuzz_files(tmp_path, QUICK[2])


@pytest.mark.slow
def test_many_mutated_config_files(tmp_path: Path) -> None:
    fuzz_files(tmp_path, SLOW[2])
