"""Bad input, and what each gives; as a script it prints the table of docs/reliability.md."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileMetaDataset

from hpt_jax.errors import printable
from hpt_jax.main import main

COUNT = 24  # good images: one more that cannot be read is less than input.max_unreadable
_SIDE = 16

CONFIG = """
from pathlib import Path
from support import tiny_config


def get_config():
    config = tiny_config(Path(__file__).parent)
    config.stages.target = dict(dataset="folder:images", steps=1)
    config.arms.T = ("target",)
    return config
"""

Make = Callable[[Path], Sequence[str] | None]


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes:
      name: in words, its row in the table.
      make: writes it below a folder, where a good config `c.py` is already; returns flags.
      exit: of the command.
      says: what the message, or what is printed, must hold: the field or the file, and why.
      whole: whether what comes after reading is of interest too.
    """

    name: str
    make: Make
    exit: int
    says: str
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the command did: its exit code, and what it printed."""

    exit: int
    out: str
    err: str


def run_case(case: Case, root: Path) -> Outcome:
    """Runs the command on a case that is made below `root`, an empty folder."""
    (root / "c.py").write_text(CONFIG)
    try:
        flags = case.make(root) or ()
        return run_command(["--config", str(root / "c.py"), "--workdir", str(root / "w"), *flags])
    finally:  # what clears temporary folders away calls itself for each folder in another
        subprocess.run(["rm", "-rf", str(root / "images")], check=True)


def run_command(arguments: Sequence[str]) -> Outcome:
    """The command in this process; a bug keeps its traceback, and is raised."""
    out, err = Terminal(), Terminal()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Outcome(code, out.text(), err.text())


class Terminal(io.TextIOWrapper):
    """A stream as strict as a terminal's: it takes no text that UTF-8 cannot encode."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", "strict", write_through=True)

    def text(self) -> str:
        """All that was written."""
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


# Good images, which a bad one stands among


def pixels(
    seed: int, height: int = _SIDE, width: int = _SIDE, dtype: type = np.uint8
) -> np.ndarray:
    """Noise [height, width, 3]."""
    most = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, most, (height, width, 3), dtype, endpoint=True)


def good(root: Path, folder: str = "images", count: int = COUNT) -> Path:
    """RGB images of 16 px."""
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(pixels(index)).save(path / f"{index:03d}.png")
    return path


def labelled(root: Path, classes: Sequence[str] = ("ant", "bee"), split: str = "") -> Path:
    """Ten images of each class."""
    for name in classes:
        good(root, os.path.join("images", split, name), 10)
    return root / "images"


def among(write: Callable[[Path], object], *flags: str) -> Make:
    """Good images, and beside them what `write(folder)` writes."""

    def make(root: Path) -> Sequence[str]:
        write(good(root))
        return flags

    return make


def image(name: str, format: str = "", mode: str = "RGB", **options: object) -> Make:
    """One image of a kind among good ones, of three channels all."""

    def write(folder: Path) -> None:
        picture = Image.fromarray(pixels(99)).convert(mode)
        picture.save(folder / name, format or None, **options)

    return among(write, "--config.input.channels=3")


def content(name: str, data: bytes) -> Make:
    """One file with this content among good images."""
    return among(lambda folder: (folder / name).write_bytes(data))


def encoded(format: str, **options: object) -> bytes:
    """A good image as a file's content."""
    file = io.BytesIO()
    Image.fromarray(pixels(98)).save(file, format, **options)
    return file.getvalue()


def dicom_content(image: np.ndarray | None) -> bytes:
    """A file of DICOM, of a patient whose name must be told nowhere."""
    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.PatientName = "SECRET^NAME"
    if image is not None:
        made.set_pixel_data(image, "RGB", 8)
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def truncated(suffix: str, data: bytes) -> Case:
    """A file that ends after half of its content."""
    name = f"cut.{suffix}"
    return Case(
        f"a {suffix.upper()} file cut short", content(name, data[: len(data) // 2]), 0, name
    )


def animated(format: str) -> bytes:
    """Three frames."""
    others = [Image.fromarray(pixels(seed)) for seed in (1, 2)]
    return encoded(format, save_all=True, append_images=others)


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    """A whole PNG of a size, whose pixels are a handful of bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    rows = zlib.compress(b"\0" * min(height * (width * depth // 8 + 1), 1 << 24))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def table(*lines: str | bytes) -> Make:
    """A folder of good images whose labels.csv has these lines; it is evaluated too."""

    def make(root: Path) -> Sequence[str]:
        raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
        (good(root) / "labels.csv").write_bytes(b"\n".join(raw) + b"\n")
        return TARGET_AUROC

    return make


TARGET = ("--config.target=folder:images", "--config.evaluations=linear,knn")
TARGET_AUROC = (*TARGET, "--config.metric=macro_auroc")
ROWS = [f"{index:03d}.png,{index % 2}" for index in range(COUNT)]
HOST = "--config.input.pipeline=host"
DATASET = "--config.stages.target.dataset"


def sized(height: int, width: int) -> Callable[[Path], object]:
    """Writes an image of this size."""
    return lambda folder: Image.fromarray(pixels(7, height, width)).save(folder / "odd.png")


def deep(folder: Path) -> None:
    """All of 16 bits."""
    for path in folder.iterdir():
        path.write_bytes(imagecodecs.png_encode(pixels(len(path.name), dtype=np.uint16)))


def only(*files: tuple[str, bytes], flags: Sequence[str] = ()) -> Make:
    """A folder of these files alone."""

    def make(root: Path) -> Sequence[str]:
        (root / "images").mkdir()
        for name, data in files:
            (root / "images" / name).write_bytes(data)
        return flags

    return make


def linked(link: str, to: str) -> Make:
    """A link among good images."""
    return among(lambda folder: (folder / link).symlink_to(to))


def circles(folder: Path) -> None:
    """Twelve folders, each with a link to every other one: more ways than could be walked."""
    for here in range(12):
        (folder / f"f{here}").mkdir()
        for there in range(12):
            (folder / f"f{here}" / f"to{there}").symlink_to(f"../f{there}")


def named(name: str | bytes) -> Make:
    """A class of this name, labelled and evaluated: it stands in every file of the results."""

    def make(root: Path) -> Sequence[str]:
        folder = labelled(root)
        os.rename(folder / "bee", os.path.join(os.fsencode(folder), os.fsencode(name)))
        return TARGET

    return make


def long_path(root: Path) -> Sequence[str]:
    """Folders in folders, to just below what the system takes; images at the bottom."""
    here = os.open(root, os.O_RDONLY)
    place = root
    while len(os.fsencode(place)) < 4095 - 2 * 201:
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, place = inner, place / ("d" * 200)
    os.close(here)
    good(place)
    return [f"{DATASET}=folder:{place}/images"]


def beyond_path_max(root: Path) -> None:
    """Folders in folders, past what the system takes."""
    here = os.open(good(root), os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def nested(root: Path) -> None:
    """More folders in each other than Python calls functions in each other."""
    place = str(good(root))
    for _ in range(1500):
        place = f"{place}/d"
        os.mkdir(place)


def flag(*texts: str) -> Make:
    """Good images and flags."""
    return among(lambda folder: None, *texts)


def fifo(name: str) -> Make:
    """A pipe that nobody writes to."""
    return among(lambda folder: os.mkfifo(folder / name))


def bind(folder: Path) -> None:
    """A socket; bound from within, since its path may be too long."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket.png")
    finally:
        os.chdir(before)


def sparse(path: Path, size: int) -> None:
    """A file of a size that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


def config_text(text: str | bytes) -> Make:
    """Good images and this config file."""

    def make(root: Path) -> None:
        good(root)
        (root / "c.py").write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def no_permission(name: str) -> Make:
    """A file or folder that may not be read; for root there is none."""

    def write(folder: Path) -> None:
        (folder / name).mkdir() if "." not in name else (folder / name).write_bytes(b"x")
        (folder / name).chmod(0)

    return among(write)


def pipe(flag: str) -> Make:
    """A pipe that a flag names."""

    def make(root: Path) -> Sequence[str]:
        good(root)
        os.mkfifo(root / "p")
        return [f"{flag}={root}/p"]

    return make


def workdir(name: str) -> Make:
    """Good images and this workdir."""
    return lambda root: good(root) and [f"--workdir={root}/{name}"]


def mixed(folder: Path) -> None:
    """Twenty images of other sizes and aspects."""
    for index in range(20):
        Image.new("RGB", (8 + index, 40 - index)).save(folder / f"mixed{index}.png")


def unreadable_test(root: Path) -> Sequence[str]:
    """A test split of nothing that can be read."""
    for split in ("train", "val"):
        labelled(root, split=split)
    (root / "images/test/ant").mkdir(parents=True)
    (root / "images/test/ant/a.png").write_bytes(b"")
    return [*TARGET, "--config.input.max_unreadable=0.5"]


def other_class(root: Path) -> Sequence[str]:
    """A class in val that train does not have."""
    labelled(root, split="train")
    labelled(root, ("cat",), "val")
    return TARGET


def one_each(root: Path) -> Sequence[str]:
    """Two classes of an image each."""
    for name in "ab":
        good(root, f"images/{name}", 1)
    return TARGET


def only_one_class(root: Path) -> Sequence[str]:
    """Every split, and one class."""
    for split in ("train", "val", "test"):
        labelled(root, ("ant",), split)
    return TARGET


LONG = "x" * 5000
NOT_UTF8 = os.fsdecode(b"s\xff")
DEEP_TIFF = io.BytesIO()
tifffile.imwrite(DEEP_TIFF, pixels(3, dtype=np.uint16), photometric="rgb")
PNG, JPEG = encoded("PNG"), encoded("JPEG")
DICOM = dicom_content(pixels(6))
NO_PIXELS = dicom_content(None)
EXIF = Image.Exif()
EXIF[0x0112] = 6
RAISES = "import hpt_jax\n{}\ndef get_config():\n    {}\n"

CASES = [
    # Files that are damaged, or no images
    Case(
        "a corrupt JPEG (bytes flipped in its header)",
        content("bad.jpg", JPEG[:2] + bytes(200) + JPEG[202:]),
        0,
        "bad.jpg",
    ),
    Case(
        "a corrupt PNG (a checksum that is wrong)",
        content("bad.png", PNG[:60] + b"XXXX" + PNG[64:]),
        0,
        "bad.png",
    ),
    truncated("jpg", JPEG),
    truncated("png", PNG),
    truncated("webp", encoded("WEBP")),
    truncated("tif", encoded("TIFF")),
    truncated("gif", encoded("GIF")),
    truncated("bmp", encoded("BMP")),
    truncated("ppm", encoded("PPM")),
    Case(
        "a 16-bit PNG cut short",
        content("cut16.png", imagecodecs.png_encode(pixels(5, dtype=np.uint16))[:400]),
        0,
        "cut16.png",
    ),
    Case("a file of zero bytes", content("empty.png", b""), 0, "empty.png"),
    Case(
        "a .png that is a web page",
        content("page.png", b"<!DOCTYPE html><html>404</html>"),
        0,
        "page.png",
    ),
    Case(
        "a .jpg that is PostScript",
        content("ps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        0,
        "ps.jpg",
    ),
    Case(
        "more unreadable images than input.max_unreadable",
        among(lambda f: [(f / f"{i}.jpg").write_bytes(b"") for i in range(5)]),
        2,
        "0.jpg: not an image file",
    ),
    Case(
        "a set of unreadable images alone",
        only(("a.png", b"x"), ("b.jpg", b"")),
        2,
        "2 of 2 cannot be read",
    ),
    Case(
        "the same with input.max_unreadable = 0.99",
        only(("a.png", b"x"), flags=["--config.input.max_unreadable=0.99"]),
        2,
        "1 of 1 cannot be read",
    ),
    Case("a folder without images", only(("notes.txt", b"x")), 2, "has none"),
    Case("no folder", lambda root: None, 2, "not found"),
    Case("a damaged DICOM file", content("bad.dcm", DICOM[:200] + b"\xff" * 400), 0, "bad.dcm"),
    Case("a DICOM file cut short", content("cut.dcm", DICOM[:-100]), 0, "cut.dcm"),
    Case("a .dcm that is a web page", content("page.dcm", b"<!DOCTYPE html>"), 0, "page.dcm"),
    Case("a DICOM file without pixels", content("plan.dcm", NO_PIXELS), 0, "without pixels"),
    # Too large
    Case(
        "a decompression bomb: a PNG of 1 MB, 30000x30000",
        content("bomb.png", png_header(30000, 30000)),
        0,
        "bomb.png",
    ),
    Case(
        "the same of 16 bits", content("bomb16.png", png_header(30000, 30000, 16)), 0, "bomb16.png"
    ),
    Case(
        "a PNG of 10000x10000 pixels, of which Pillow would warn",
        among(
            lambda f: (f / "large.png").write_bytes(png_header(10_000, 10_000, 1)),
            "--config.input.channels=3",
        ),
        0,
        "25 train",
    ),
    Case("a file of 5 GiB", among(lambda f: sparse(f / "huge.png", 5 << 30)), 0, "huge.png"),
    # Kinds of images
    Case("a CMYK JPEG", image("cmyk.jpg", mode="CMYK"), 0, "25 train"),
    Case("a palette PNG", image("palette.png", mode="P"), 0, "25 train"),
    Case("a PNG with alpha", image("alpha.png", mode="RGBA"), 0, "25 train"),
    Case("a grey PNG with alpha", image("alpha.png", mode="LA"), 0, "25 train"),
    Case("a black-and-white TIFF", image("bilevel.tif", mode="1"), 0, "25 train"),
    Case("a JPEG turned by EXIF", image("turned.jpg", exif=EXIF), 0, "25 train", True),
    Case("an animated GIF", content("moving.gif", animated("GIF")), 0, "25 train"),
    Case("an animated WebP", content("moving.webp", animated("WEBP")), 0, "25 train"),
    Case("an animated PNG", content("moving.png", animated("PNG")), 0, "25 train"),
    Case("a .jpg that is a PNG", content("other.jpg", PNG), 0, "25 train"),
    Case("a suffix in capitals", content("LOUD.JPG", JPEG), 0, "25 train"),
    Case("16-bit PNGs", among(deep), 0, "16 bit"),
    Case("the same, read as needed", among(deep, HOST), 0, "16 bit"),
    Case(
        "a 16-bit image among 8-bit ones", content("deep.tif", DEEP_TIFF.getvalue()), 2, "deep.tif"
    ),
    Case(
        "a TIFF of floating-point numbers",
        among(lambda f: tifffile.imwrite(f / "float.tif", np.ones((9, 9), np.float32))),
        0,
        "float.tif",
    ),
    Case(
        "grey and colour mixed",
        among(lambda f: Image.new("L", (16, 16)).save(f / "grey.png")),
        2,
        "grey.png",
    ),
    Case("the same with input.channels = 3", image("grey.png", mode="L"), 0, "25 train"),
    Case("images of mixed sizes", among(mixed), 0, "44 train"),
    Case("the same, read as needed", among(mixed, HOST), 0, "44 train"),
    # Shapes
    Case("an image of 1x1 pixel", among(sized(1, 1)), 0, "25 train", True),
    Case("the same, read as needed", among(sized(1, 1), HOST), 0, "25 train"),
    Case("an image of 1x5000 pixels", among(sized(1, 5000)), 0, "25 train", True),
    Case("the same, read as needed", among(sized(1, 5000), HOST), 0, "25 train"),
    Case("an image of 5000x1 pixels", among(sized(5000, 1)), 0, "25 train", True),
    Case("the same, read as needed", among(sized(5000, 1), HOST), 0, "25 train"),
    # Sets
    Case("one image", lambda root: good(root, count=1) and None, 0, "1 train", True),
    Case("the same, read as needed", lambda root: good(root, count=1) and [HOST], 0, "1 train"),
    Case(
        "the same as a target",
        lambda root: good(root, count=1) and TARGET,
        2,
        "target = 'folder:images'",
    ),
    Case("two classes of one image each as a target", one_each, 2, "target = 'folder:images'"),
    Case(
        "one class folder",
        lambda root: good(root, "images/ant") and None,
        0,
        "24 train, unlabelled",
    ),
    Case(
        "the same as a target",
        lambda root: good(root, "images/ant") and TARGET,
        2,
        "target = 'folder:images'",
    ),
    Case(
        "one class in train, val and test as a target",
        only_one_class,
        2,
        "target = 'folder:images'",
    ),
    Case("fewer images than a batch", lambda root: good(root, count=3) and None, 0, "3 train"),
    Case("a test split of unreadable images", unreadable_test, 2, "target = 'folder:images'"),
    Case("a val split of a class that train has not", other_class, 2, "val/cat"),
    Case(
        "input.subset of more images than there are",
        flag("--config.stages.target.subset=25"),
        2,
        "subset",
    ),
    # Entries that are no files
    Case("a folder called x.jpg", among(lambda f: (f / "x.jpg").mkdir()), 0, "24 train"),
    Case("a pipe called x.png", fifo("x.png"), 0, "24 train"),
    Case("a pipe called labels.csv", fifo("labels.csv"), 2, "labels.csv"),
    Case("a socket called x.png", among(bind), 0, "24 train"),
    Case("a file that may not be read", no_permission("locked.png"), 0, "locked.png"),
    Case("a folder that may not be read", no_permission("locked"), 2, "locked"),
    # Links
    Case("a link to nothing, called x.png", linked("x.png", "gone.png"), 0, "x.png"),
    Case("a link to nothing, called x", linked("x", "gone"), 0, "24 train"),
    Case("a link to itself", linked("x.png", "x.png"), 0, "x.png"),
    Case(
        "two links to each other",
        among(lambda f: [(f / "x").symlink_to("y"), (f / "y").symlink_to("x")]),
        0,
        "24 train",
    ),
    Case("a link to its own folder", linked("x", "."), 0, "24 train"),
    Case("a link to the folder above", linked("x", ".."), 0, "24 train"),
    Case("a link to the root of the file system", linked("x", "/"), 0, "24 train"),
    Case("folders that all link each other", among(circles), 2, "ways lead to"),
    # Names
    Case("a class called Ä字🐜", named("Ä字🐜"), 0, "2 classes"),
    Case("a class whose name is not UTF-8", named(b"b\xff\xfe"), 0, "2 classes", True),
    Case("a class with quotes and HTML in its name", named("<b>\"'&{{x}}"), 0, "2 classes"),
    Case("a class with a line break in its name", named("b\nc"), 0, "2 classes"),
    Case(
        "an unreadable file with terminal codes in its name",
        content("a\x1b[2J\r\nb.png", b""),
        0,
        r"a\x1b[2J\r\nb.png",
        True,
    ),
    Case("the same, too many", only(("a\x1b[2J\nb.png", b"")), 2, r"a\x1b[2J\nb.png"),
    Case(
        "an unreadable file whose name is not UTF-8",
        among(lambda f: Path(os.fsdecode(os.fsencode(f) + b"/\xff.png")).write_bytes(b"")),
        0,
        r"\xff.png",
    ),
    Case(
        "a folder whose name is not UTF-8",
        lambda root: good(root, NOT_UTF8) and [f"{DATASET}=folder:{NOT_UTF8}"],
        0,
        "24 train",
        True,
    ),
    Case("a file name of 255 bytes", content("x" * 251 + ".png", PNG), 0, "25 train"),
    Case("paths near the longest that there are", long_path, 0, "24 train", True),
    Case("a folder whose path is longer", beyond_path_max, 2, "File name too long"),
    Case("1500 folders in each other", nested, 0, "24 train"),
    Case("folder: of a path of 5000 letters", flag(f"{DATASET}=folder:{LONG}"), 2, "dataset"),
    Case("folder: with a zero byte", flag(f"{DATASET}=folder:a\0b"), 2, "a\\x00b"),
    Case("folder: with a lone surrogate", flag(f"{DATASET}=folder:\ud800"), 2, "\\ud800"),
    Case("folder: of a file", flag(f"{DATASET}=folder:images/000.png"), 2, "000.png"),
    Case("data_dir of 5000 letters", flag(f"--config.data_dir=/{LONG}"), 2, "set data_dir"),
    Case("data_dir with a zero byte", flag("--config.data_dir=a\0b"), 2, "a\\x00b"),
    Case(
        "init of 5000 letters", flag(f"--config.stages.target.init={LONG}"), 2, "stages.target.init"
    ),
    Case(
        "init with a zero byte", flag("--config.stages.target.init=a\0b"), 2, "stages.target.init"
    ),
    Case("init that is a pipe", pipe("--config.stages.target.init"), 2, "stages.target.init"),
    Case("--config of 5000 letters", flag(f"--config={LONG}"), 2, "--config"),
    Case("--config with a zero byte", flag("--config=a\0b.py"), 2, "--config"),
    Case("--config that is a pipe", pipe("--config"), 2, "--config"),
    Case(
        "--config that is a folder",
        lambda root: good(root) and [f"--config={root}/images"],
        2,
        "--config",
    ),
    Case("--workdir of 5000 letters", workdir(f"{LONG}"), 2, "--workdir"),
    Case("--workdir of a name of 300 letters", workdir(f"new/{'x' * 300}"), 2, "--workdir"),
    Case(
        "--workdir near the longest path that there is", workdir(f"{'d/' * 1900}"), 2, "--workdir"
    ),
    Case("--workdir with a zero byte", workdir("a\0b"), 2, "--workdir"),
    Case("a config's name of 300 letters", flag(f"--config.name={'x' * 300}"), 2, "name"),
    # Tables of labels
    Case("a labels.csv that holds", table("image,car", *ROWS), 0, "1 labels"),
    Case(
        "a labels.csv with a byte-order mark", table(b"\xef\xbb\xbfimage,car", *ROWS), 0, "1 labels"
    ),
    Case(
        "a labels.csv in Latin-1",
        table("image,car", *ROWS, "schön.png,1".encode("latin-1")),
        2,
        "labels.csv:26",
    ),
    Case(
        "a labels.csv in UTF-16",
        table(*["\n".join(["image,car", *ROWS]).encode("utf-16")]),
        2,
        "labels.csv:1",
    ),
    Case(
        "a labels.csv with zero bytes", table("image,car", *ROWS, "a\0.png,1"), 2, "labels.csv:26"
    ),
    Case("a labels.csv of zero bytes", table(b"\0" * 1000), 2, "labels.csv"),
    Case("an empty labels.csv", table(), 2, "labels.csv"),
    Case(
        "a labels.csv with a cell of a million letters",
        table("image,car", *ROWS, f"{'x' * 10**6},1"),
        2,
        "labels.csv:26",
    ),
    Case(
        "a labels.csv with a quote that is not closed",
        table("image,car", '"000.png,1', *ROWS[1:]),
        2,
        "labels.csv",
    ),
    Case(
        "a labels.csv with a class that no image has",
        table("image,car,bus", *(f"{row},0" for row in ROWS)),
        0,
        "2 labels",
    ),
    Case(
        "a labels.csv whose only class every image has",
        table("image,car", *(f"{index:03d}.png,1" for index in range(COUNT))),
        2,
        "metric",
        True,
    ),
    Case(
        "a labels.csv that is a folder",
        among(lambda f: (f / "labels.csv").mkdir()),
        2,
        "labels.csv",
    ),
    Case(
        "a labels.csv that names what lies outside",
        table("image,car", *ROWS, "../c.py,1"),
        2,
        "labels.csv:26",
    ),
    # Config files
    Case("a config file that raises", config_text(RAISES.format("", "1 / 0")), 2, "c.py:4"),
    Case(
        "a config file that exits",
        config_text(RAISES.format("import sys", "sys.exit(0)")),
        2,
        "c.py:4",
    ),
    Case(
        "a config file that calls itself for ever",
        config_text(RAISES.format("", "get_config()")),
        2,
        "RecursionError",
    ),
    Case("a config file with zero bytes", config_text(b"x = 1\0\n"), 2, "c.py"),
    Case("a config file in Latin-1", config_text(b"x = '\xe4'\n"), 2, "c.py"),
    Case("a config file that is not Python", config_text("learning_rate: 3\n"), 2, "c.py"),
    Case("a config file that imports what is not there", config_text("import nix\n"), 2, "c.py:1"),
    Case(
        "a config file whose get_config is no function", config_text("get_config = 3\n"), 2, "c.py"
    ),
    Case("an empty config file", config_text(""), 2, "get_config"),
    Case(
        "a config file that may not be read",
        lambda root: (good(root), (root / "c.py").chmod(0))[1],
        2,
        "c.py",
    ),
    Case(
        "a config that holds itself",
        config_text(CONFIG.replace("return", "config.stages.target.model = config\n    return")),
        2,
        "stages.target.model",
    ),
    # Values
    Case("a batch of 10**9", flag("--config.batch_size=1000000000"), 2, "batch_size"),
    Case("a queue of 10**12", flag("--config.moco.queue_size=1000000000000"), 2, "moco.queue_size"),
    Case("a width of 10**6", flag("--config.model.width=1000000"), 2, "model.width"),
    Case(
        "a queue that no memory holds",
        flag("--config.moco.queue_size=2000000000"),
        2,
        "moco.queue_size",
    ),
    Case(
        "a batch of 10**6 images of 16384 px",
        flag(
            "--config.batch_size=1000000",
            "--config.moco.queue_size=1000000",
            "--config.image_size=16384",
        ),
        2,
        "batch_size",
    ),
    Case(
        "a learning rate of 10**400",
        flag(f"--config.optimizer.learning_rate=1{'0' * 400}"),
        2,
        "optimizer.learning_rate",
    ),
    Case(
        "a learning rate that is not a number",
        flag("--config.optimizer.learning_rate=nan"),
        2,
        "optimizer.learning_rate",
    ),
    Case("a value of 10000 brackets", flag(f"--config.batch_size={'(' * 10000}"), 2, "batch_size"),
]


# The table


def row(case: Case, outcome: Outcome) -> str:
    """A case's line of the table."""
    gave = works(outcome.out) if outcome.exit == 0 else outcome.err.strip()
    text = printable(gave).replace("|", "\\|").replace("<", "&lt;")
    text = re.sub(r"(..?)\1{20,}", r"\1\1...", text)
    if len(text) > 300:
        text = f"{text[:200]}...{text[-80:]}"
    return f"| {case.name} | {text} | {outcome.exit} |"


def works(out: str) -> str:
    """How it is read, what is skipped and what is noted, out of all that is printed."""
    lines = r"^(?:folder:.*?: (\d.*)|(skipped .*|note: (?!target: moco.queue_size).*))$"
    told = dict.fromkeys(re.findall(lines, out, re.M))
    return "works: " + "; ".join("".join(one) for one in told)


def without(text: str, root: Path) -> str:
    """A message without the temporary folder."""
    return text.replace(f"{root}/", "").replace(str(root), "DIR")


def print_table() -> None:
    """Runs every case."""
    print("| input | what it gave | exit |\n|---|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_case(case, Path(folder))
        shorter = Outcome(
            outcome.exit, *(without(t, Path(folder)) for t in (outcome.out, outcome.err))
        )
        print(row(case, shorter), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(Path(__file__).parent))
    print_table()
