"""The command: `python -m hpt_jax.weights import SRC DST` and `export CKPT DST --format NAME`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from hpt_jax.models.backbone import Backbone
    from hpt_jax.models.resnet import ResNet
    from hpt_jax.weights.load import Weights

FORMATS = ("torchvision", "timm", "safetensors", "detectron2", "onnx")


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    asked = _parser().parse_args(arguments)
    try:
        asked.run(asked)
    except UserError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m hpt_jax.weights", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="import | export")
    one = commands.add_parser("import", help="check someone's weights, and keep them as ours")
    one.add_argument("src", metavar="SRC", help="a file or checkpoint of any known kind")
    one.add_argument("dst", metavar="DST", help="a folder to make; --config.init=DST starts there")
    one.add_argument("--arch", default="resnet50", help="expected depth (default: %(default)s)")
    one.add_argument("--width", type=int, default=64, help="expected width (default: %(default)s)")
    one.add_argument("--stem", default="", help="where the file does not say it")
    one.add_argument("--stem-stride", type=int, choices=(1, 2), help="of a 3x3 stem (default: 1)")
    one.add_argument("--channels", type=int, default=0, help="convert to so many channels")
    one.add_argument("--missing", default="", help="parts that the file may lack, such as layer4")
    one.add_argument("--prefix", help="of the backbone's names, where a file holds several")
    one.set_defaults(run=import_weights)
    two = commands.add_parser("export", help="write a backbone for another library, and verify it")
    two.add_argument("src", metavar="CKPT", help="a stage's folder, an import, or a file")
    two.add_argument("dst", metavar="DST", help="a folder to make")
    two.add_argument("--prefix", help="of the backbone's names, where a file holds several")
    two.add_argument("--format", required=True, choices=FORMATS)
    two.set_defaults(run=export_weights)
    return parser


def import_weights(asked: argparse.Namespace) -> None:
    """Loads SRC strictly, prints the proof, and writes DST: weights, card and proof."""
    from hpt_jax.models.resnet import ARCHITECTURES
    from hpt_jax.telemetry.display import Display
    from hpt_jax.weights import check, export, load, proof
    from hpt_jax.workdir import write_json

    display = Display()
    if asked.arch not in ARCHITECTURES:
        fix = nearest(asked.arch, ARCHITECTURES)
        raise UserError("--arch", asked.arch, "a known architecture", fix)
    for flag in ("width", "channels"):
        if getattr(asked, flag) < 0:
            raise UserError(f"--{flag}", getattr(asked, flag), "at least 1", "Leave it out.")
    with _new_folder(asked.dst) as folder, display.working(f"importing {asked.src}"):
        weights = _restated(load.load(asked.src, "SRC", asked.prefix), asked)
        if asked.channels:
            weights = load.with_channels(weights, asked.channels)
        wanted = {**weights.facts, "arch": asked.arch, "width": asked.width}
        named = [part.strip() for part in asked.missing.split(",") if part.strip()]
        named += [part for part in weights.facts.get("missing", ()) if part not in named]
        check.weights(weights, wanted, named, "SRC", asked.src, _flag)
        weights = dataclasses.replace(weights, facts=wanted)
        model, backbone = _filled(weights)
        found = proof.prove(weights, model, backbone, "SRC")
        for line in found.lines():
            display.line(line)
        facts = {"lineage": _lineage(asked.src, weights), **weights.facts}
        lacking = [p for p in named if any(one.startswith(f"{p}.") for one in found.missing)]
        facts |= {"missing": lacking} if lacking else {}
        whole = backbone if not found.missing else _without(backbone, set(found.missing))
        export.export_backbone(whole, facts, folder)
        write_json(folder / "proof.json", dataclasses.asdict(found))
    display.line(f"imported into {asked.dst}: start from it with --config.init={asked.dst}")


def export_weights(asked: argparse.Namespace) -> None:
    """Writes CKPT into DST in the form of another library, and runs it there."""
    from hpt_jax.telemetry.display import Display
    from hpt_jax.weights import check, export, load, proof, verify

    display = Display()
    with _new_folder(asked.dst) as folder, display.working(f"exporting {asked.src}"):
        weights = load.load(asked.src, "CKPT", asked.prefix)
        check.weights(weights, weights.facts, (), "CKPT", asked.src, _instead)
        model, backbone = _filled(weights)
        facts = {"lineage": _lineage(asked.src, weights), **weights.facts}
        export.export_backbone(backbone, facts, folder, asked.format)
        images = proof.fixed_image(facts["channels"])
        for view in (images[:, 1:, 3:], images):  # odd sides tell paddings apart
            ours = proof.features(model, backbone, view)
            outcome = verify.verify(asked.format, folder, facts, view, ours)
        display.line(outcome)
    display.line(f"exported to {asked.dst}: {', '.join(sorted(os.listdir(asked.dst)))}")


def _filled(weights: Weights) -> tuple[ResNet, Backbone]:
    """The network of the weights, and a backbone with them in it."""
    import jax

    from hpt_jax.models.resnet import ARCHITECTURE_FIELDS, ResNet
    from hpt_jax.weights import load

    model = ResNet(**{name: weights.facts[name] for name in ARCHITECTURE_FIELDS})
    pixels = (weights.pixel_mean, weights.pixel_std, weights.pixel_window)
    return model, load.make_backbone(model, jax.random.key(0), weights, *pixels)


def _restated(weights: Weights, asked: argparse.Namespace) -> Weights:
    """The weights with the stem that the user knows better than the file."""
    from hpt_jax.models.resnet import STEMS

    facts: dict[str, Any] = dict(weights.facts)
    kernel = STEMS[facts["stem"]].kernel
    fitting = [name for name, stem in STEMS.items() if stem.kernel == kernel]
    if asked.stem and asked.stem not in fitting:
        expected = f"{' or '.join(fitting)}, since its first convolution is {kernel}x{kernel}"
        raise UserError("--stem", asked.stem, expected, "Leave it out to take what is likely.")
    facts["stem"] = asked.stem or facts["stem"]
    if asked.stem_stride and STEMS[facts["stem"]].stride not in (None, asked.stem_stride):
        expected = f"{STEMS[facts['stem']].stride}, since its first convolution is 7x7"
        raise UserError("--stem-stride", asked.stem_stride, expected, "Leave it out.")
    facts["stem_stride"] = asked.stem_stride or facts["stem_stride"]
    said = asked.stem or asked.stem_stride
    notes = tuple(note for note in weights.notes if not (said and " stem" in note))
    return dataclasses.replace(weights, facts=facts, notes=notes)


def _without(backbone: Backbone, missing: set[str]) -> Backbone:
    """A backbone without the tensors that a file lacked, so that no one takes them for trained."""
    from flax import traverse_util

    from hpt_jax.weights.names import torch_name

    def keep(tree: Any) -> Any:
        flat = traverse_util.flatten_dict(tree)
        kept = {path: leaf for path, leaf in flat.items() if torch_name(*path) not in missing}
        return traverse_util.unflatten_dict(kept)

    return dataclasses.replace(
        backbone, params=keep(backbone.params), batch_stats=keep(backbone.batch_stats)
    )


def _lineage(source: str, weights: Weights) -> str:
    from hpt_jax.weights import files, load

    name = files.printable(Path(source).name)
    return f"{name} ({weights.dialect}, content {load.fingerprint(source)})"


def _flag(name: str, value: object) -> str:
    """How a message names a flag."""
    return f"--{name.replace('_', '-')} {value}"


def _instead(name: str, value: object) -> str:
    """What to do before an export, which takes whole backbones alone."""
    return f"import it with {_flag(name, value)}, and train it as a stage; then export that stage"


@contextmanager
def _new_folder(path: str) -> Iterator[Path]:
    """Yields a folder whose content is at `path` in the end; after an error nothing is there."""
    target = Path(os.path.realpath(path))
    there = os.path.lexists(target)
    if there and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(
            "DST", path, "a folder that is not there yet, or is empty", "Choose another."
        )
    above = target if there else next(one for one in target.parents if os.path.lexists(one))
    try:
        temporary = Path(tempfile.mkdtemp(dir=above, prefix=".new."))
    except OSError as error:
        expected = f"a folder that can be made, but: {error.strerror}"
        raise UserError("DST", path, expected, "Choose another.") from None
    try:
        yield temporary
        if there:  # it may be a mount point or the end of a link, which cannot be replaced
            for file in temporary.iterdir():
                file.rename(target / file.name)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
