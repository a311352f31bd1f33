"""Files of weights as flat dicts of arrays. Nothing that stands in a file is ever executed."""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from hpt_jax.errors import UserError

EXPECTED = (
    "weights of a ResNet: a .safetensors or PyTorch file (.pth, .pt, .bin, .ckpt), a TensorFlow "
    "checkpoint, or the folder of a finished stage or of an import"
)
# What `torch.save` writes since 2020 is a zip file; before, a pickle that begins with this number.
_TORCH_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE = (
    "weights that can be read without running them; this is a plain pickle, which runs whatever "
    "its author put in, and is never opened"
)
_PICKLE_FIX = (
    "If you trust it, save its arrays with safetensors, where it came from. (DeepMind's BYOL .pkl "
    "would not fit anyway: Haiku pads strided convolutions unevenly, as XLA's SAME.)"
)
# Beginnings of files that people take for weights: what was expected instead, and the fix.
_REFUSED = (
    (rb"\s*<(!doctype|html|\?xml)", f"{EXPECTED}; this is a web page", "Download the file itself."),
    (rb"version https://git-lfs", f"{EXPECTED}; this is a pointer of Git LFS", "Run git lfs pull."),
    (rb"\x80[\x02-\x05]", _PICKLE, _PICKLE_FIX),
    (
        rb"\x08[\x01-\x1f][\x12\x1a\x3a]",
        f"{EXPECTED}; this is an ONNX model",
        "ONNX is not read back: take what it was exported from.",
    ),
)
_DEEPEST = 8  # nested dicts
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
METADATA = "hpt_jax"  # the key under which a file of ours tells what its tensors do not

# Settings that trainers save beside the weights. They are read as blanks, so that neither their
# packages nor any code of theirs is needed; everything else that is not a tensor is refused. (Dicts
# become OrderedDicts: torch's reader fills no other kind of dict that has a state of its own.)
_BLANK_DICTS = (
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "vissl.config.attr_dict.AttrDict",
    "vissl.utils.hydra_config.AttrDict",
    "yacs.config.CfgNode",
)
_BLANKS = (
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "typing.Any",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """What a file holds.

    Attributes:
      tensors: floating-point arrays by the dotted path of their names, laid out as in the file.
      metadata: of a safetensors header, or what an export of ours holds in its place.
      keys: the names at the top.
      torch: whether convolutions are [out, in, h, w], as torch has them; else [h, w, in, out].
    """

    tensors: dict[str, np.ndarray]
    metadata: Mapping[str, str]
    keys: frozenset[str]
    torch: bool = True


def read(path: Path, field: str) -> Content:
    """Reads weights, whatever the file's name ends in.

    Args:
      path: a file, or the prefix of a TensorFlow checkpoint.
      field: the config's field or the flag to blame.

    Raises:
      UserError: it holds no weights, or something that would have to be executed.
    """
    if is_tensorflow(path):
        return _read_tensorflow(path, field)
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        expected = f"a file that can be read, but: {error.strerror}"
        raise UserError(field, str(path), expected, "Allow it, or choose another.") from None
    if not head:
        raise UserError(field, str(path), f"{EXPECTED}; the file is empty", "Download it again.")
    if head.startswith((b"PK\x03\x04", _TORCH_BEFORE_ZIP)):
        return _read_torch(path, field)
    for begins, expected, fix in _REFUSED:
        if re.match(begins, head, re.IGNORECASE):
            raise UserError(field, str(path), expected, fix)
    return _read_safetensors(path, field)


def is_tensorflow(path: Path) -> bool:
    """Whether a path is the prefix of a TensorFlow checkpoint."""
    data = f"{glob.escape(path.name)}.data-*-of-*"
    has_index = os.path.isfile(path.with_name(path.name + ".index"))
    return has_index and any(path.parent.glob(data))


def _read_safetensors(path: Path, field: str) -> Content:
    tensors: dict[str, np.ndarray] = {}
    try:
        # NumPy has no bfloat16, and JAX would round float64.
        with safe_open(path, "numpy") as file, safe_open(path, "flax") as in_jax:
            metadata, known = file.metadata() or {}, list(file.keys())
            for name in known:
                dtype = file.get_slice(name).get_dtype()
                if dtype in ("F16", "F32", "F64", "BF16"):
                    reader = in_jax if dtype == "BF16" else file
                    tensors[name] = np.asarray(reader.get_tensor(name))
    except (SafetensorError, OSError, ValueError) as error:
        fix = f"Download or copy it again; as safetensors it cannot be read: {error}."
        raise UserError(field, str(path), EXPECTED, fix) from None
    return Content(_floats(tensors), metadata, frozenset(known))


def _floats(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The floating-point ones; those of half precision as float32, which holds them exactly."""
    kept = {}
    for raw, value in tensors.items():
        name = printable(raw)
        if value.dtype in (np.float32, np.float64):
            kept[name] = value
        elif value.dtype.itemsize == 2 and value.dtype.kind in "fV":  # bfloat16 is of kind V
            kept[name] = value.astype(np.float32)
    return kept


def printable(text: str) -> str:
    """Text of a file, without what would move a terminal's cursor or break a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class _Blank:
    """Stands for a setting that is not wanted; swallows what it is built from."""

    def __new__(cls, *args: object, **kwargs: object) -> _Blank:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _blank_defaultdict(*_: object) -> dict[Any, Any]:
    return {}


def _read_torch(path: Path, field: str) -> Content:
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            field,
            str(path),
            "PyTorch to be installed, which alone reads files that torch.save wrote",
            "Run pip install 'hpt_jax[torch]'.",
        ) from None
    blanks: list[Any] = [(_Blank, name) for name in _BLANKS]
    blanks += [(collections.OrderedDict, name) for name in _BLANK_DICTS]
    blanks += [(_blank_defaultdict, "collections.defaultdict")]
    try:
        # As an open file, because of a path torch.load would believe the ending.
        with (
            path.open("rb") as file,
            torch.serialization.safe_globals(blanks),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _not_weights(path, field, str(error)) from None
    # All of what torch's reader raises on files that are cut short or changed.
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError,
            AssertionError) as error:  # fmt: skip
        if "TorchScript" in str(error):
            expected = f"{EXPECTED}; this is a TorchScript archive"
            fix = "Save its tensors: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')."
            raise UserError(field, str(path), expected, fix) from None
        reason = re.split(r"\n|\. ", str(error).strip())[0]
        fix = f"Download or copy it again; PyTorch cannot read it: {reason or 'it ends too early'}."
        raise UserError(field, str(path), EXPECTED, fix) from None
    if not isinstance(content, Mapping):
        content = {"": content}
    tensors = {}
    for name, value in _leaves(content):
        if isinstance(value, torch.Tensor) and _is_plain(value):
            half = value.element_size() == 2
            tensors[name] = (value.detach().float() if half else value.detach()).numpy()
    told = getattr(content, "_metadata", None)
    own = told.get(METADATA) if isinstance(told, dict) else None
    metadata = own if isinstance(own, dict) and isinstance(own.get(METADATA), str) else {}
    return Content(_floats(tensors), metadata, frozenset(map(str, content)))


def _is_plain(tensor: Any) -> bool:
    """Whether NumPy can hold it; not where few stored numbers stand for more than memory holds."""
    return (
        tensor.is_floating_point()
        and tensor.element_size() in (2, 4, 8)
        and str(tensor.layout) == "torch.strided"
        and tensor.device.type == "cpu"
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )


def _not_weights(path: Path, field: str, message: str) -> UserError:
    """What torch's reader refused to run, in words."""
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused is None:
        fix = "Download or copy it again; its pickle is damaged, or does more than hold tensors."
        return UserError(field, str(path), EXPECTED, fix)
    what = refused[1]
    fix = "If you trust it, save the tensors alone: torch.save(model.state_dict(), 'weights.pth')."
    return UserError(
        field,
        str(path),
        f"tensors and nothing else, but loading it would call {what}; nothing of it was run",
        fix,
    )


def _leaves(content: Mapping[Any, Any], above: str = "", depth: int = 1) -> Iterator[tuple]:
    """(dotted path, value) of all that is no dict."""
    for key, value in content.items():
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _leaves(value, f"{above}{key}.", depth + 1)
        else:
            yield f"{above}{key}", value


def _read_tensorflow(path: Path, field: str) -> Content:
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(path))
        tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, RuntimeError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        fix = f"Copy its .index and .data files again; TensorFlow cannot read them: {reason}."
        raise UserError(field, str(path), EXPECTED, fix) from None
    arrays = {name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}
    return Content(_floats(arrays), {}, frozenset(arrays), torch=False)


def timm_config(path: Path) -> dict[str, Any]:
    """The config.json that timm keeps beside a model of its own; {} where there is none."""
    if path.name not in TIMM_FILES:
        return {}
    try:
        content = json.loads((path.parent / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        return {}
    arguments = content.get("model_args")
    return {**content, "model_args": arguments if isinstance(arguments, dict) else {}}
