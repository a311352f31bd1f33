"""The names that other projects give to a ResNet's tensors, and how they become torchvision's.

A file is searched for whatever lies below one prefix and has the names of a backbone, so that new
wrappers (`module.`, `student.`, ...) need no entry here; the tables only give names to what is
known, and say what its file leaves out.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator

import numpy as np

from hpt_jax.errors import UserError
from hpt_jax.models.resnet import ARCHITECTURES
from hpt_jax.weights import names
from hpt_jax.weights.files import EXPECTED, Content

_IN_BLOCK = r"(?:(?:conv|bn)\d+|(?:downsample|shortcut)\.[01])"
# How the tensors below a prefix are named: by module, or by place in a torch.nn.Sequential of a
# network's children, as lightly's examples build a backbone.
_STYLES = {
    "modules": re.compile(rf"(?:(?:conv|bn)1|layer[1-9]\.\d+\.{_IN_BLOCK})\.\w+"),
    "sequential": re.compile(rf"(?:[01]|[2-7]\.\d+\.{_IN_BLOCK})\.\w+"),
}
# An encoder that follows another by momentum, and the one that it follows, which is taken: MoCo's
# key encoder and its query encoder, in the names of the projects.
_FOLLOWS = (
    ("encoder_k", "encoder_q"), ("key_encoder", "query_encoder"), ("target", "online"),
    ("momentum_encoder", "base_encoder"), ("momentum_", ""), ("_momentum", ""),
)  # fmt: skip
# Modules that change what a backbone computes.
_OF_BACKBONE = re.compile(r"(?:conv|bn|layer|norm|stem|maxpool|attnpool)\d*\.")
# Modules beside a backbone that do not; of whatever else stands there the proof warns.
_BESIDE = re.compile(
    r"(?:module\.)?\w*(?:fc|head|linear|classifier|proj|pred|queue|logit|neck|mlp|prototype|cluster"
    r"|optimizer|scheduler|loss|ema|meter)",
    re.IGNORECASE,
)
_DENSE = re.compile(r"(?:^|\.)(?:aux_classifier|decode_head|rpn|fpn|roi_heads?)\.")
_LIGHTNING = "pytorch-lightning_version"
# Whose recipes normalise with ImageNet's mean and standard deviation.
_ON_IMAGENET = ("facebookresearch MoCo", "OpenSelfSup or mmselfsup", "VISSL")


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The backbone in a file.

    Attributes:
      dialect: who names tensors so, in words.
      prefix: what its names in the file begin with.
      tensors: by torchvision's names, convolutions as [h, w, in, out].
      unused: name in the file -> shape, of all that is no part of the backbone.
      stem: where the dialect decides it, a name of `models.resnet.STEMS`; else ''.
      pixels: how they were normalised, where the dialect decides it: 'imagenet', or 'raw' (left in
        [0, 1]); else ''.
      notes: what was concluded, in sentences.
    """

    dialect: str
    prefix: str
    tensors: dict[str, np.ndarray]
    unused: dict[str, tuple[int, ...]]
    stem: str = ""
    pixels: str = ""
    notes: tuple[str, ...] = ()


def find(content: Content, prefix: str | None, field: str, source: str) -> Found:
    """The one backbone that a file holds.

    Args:
      content: of the file.
      prefix: what the backbone's names begin with; None: found out.
      field: the config's field or the flag to blame.
      source: the file.

    Raises:
      UserError: there is none, or there are several and nothing says which one is meant.
    """
    if not content.torch:
        return _simclr(content, field, source)
    there, chosen = _candidates(content), prefix is not None
    if prefix is None:
        style, prefix = _choose(there, content, field, source)
    else:
        if not any(at == prefix for _, at in there):
            prefix = f"{prefix}."  # people leave the last dot out
        styles = [style for style, at in there if at == prefix]
        if not styles:
            shown = ", ".join(sorted({repr(at) for _, at in there})) or "none"
            fix = f"The prefixes of backbones in {source}: {shown}."
            raise UserError("--prefix", prefix[:-1], "what a backbone's names begin with", fix)
        style = styles[0]
    tensors, notes = _below(prefix, style, content)
    prefixes = {at for _, at in there}
    for at in sorted(prefixes - {prefix}):
        how = ", which follows another by momentum" if _follows(at, prefixes) else ""
        how = how or ("" if chosen else ", with the same numbers")
        notes.append(f"passed over: another backbone below {at!r}{how}")
    kept = {new for new in tensors if _OF_BACKBONE.match(new)}
    unused = {prefix + new: value.shape for new, value in tensors.items() if new not in kept}
    unused |= {k: v.shape for k, v in content.tensors.items() if not k.startswith(prefix)}
    stem = ""
    dialect = _dialect(prefix, style, content)
    if dialect == "solo-learn" and tensors.get("conv1.weight", np.zeros(())).shape[-1:] == (3,):
        stem = "solo"
        notes.append("solo-learn pads its 3x3 stem by 2: the stem is 'solo' ('small' pads by 1)")
    notes += _warnings(tensors.keys() - kept, unused)
    tensors = {new: names.from_torch(value) for new, value in tensors.items() if new in kept}
    pixels = "imagenet" if dialect in _ON_IMAGENET else ""
    return Found(dialect, prefix, tensors, unused, stem, pixels, tuple(notes))


def _warnings(beside: Iterable[str], unused: Iterable[str]) -> list[str]:
    """What stands in the file and may mean that the network computes something else."""
    notes = []
    unknown = sorted({name.partition(".")[0] for name in beside if not _BESIDE.match(name)})
    if unknown:
        notes.append(
            f"beside the backbone there are {', '.join(unknown)}: if its forward pass uses them, "
            "it computes something else"
        )
    if any(_DENSE.search(name) for name in unused):
        notes.append(
            "it is of a detector or a segmenter: its last layers may be dilated where these "
            "stride, and its batch norm's epsilon another, neither of which a file says"
        )
    return notes


def _candidates(content: Content) -> list[tuple[str, str]]:
    """(style, prefix) of all that have blocks of at least two layers, the shortest prefix first."""
    layers: dict[tuple[str, str], set[str]] = {}
    for name in content.tensors:
        for style, prefix, rest in _split(name):
            if rest.count(".") > 1:
                layers.setdefault((style, prefix), set()).add(rest.partition(".")[0])
    return sorted((key for key, found in layers.items() if len(found) > 1), key=lambda k: len(k[1]))


def _split(name: str) -> Iterator[tuple[str, str, str]]:
    """(style, prefix, rest) of the shortest prefix in each style; none where none fits."""
    for style, pattern in _STYLES.items():
        for start in (0, *(match.end() for match in re.finditer(r"\.", name))):
            if pattern.fullmatch(name, start):
                yield style, name[:start], name[start:]
                break


def _choose(
    there: list[tuple[str, str]], content: Content, field: str, source: str
) -> tuple[str, str]:
    prefixes = {prefix for _, prefix in there}
    left = [key for key in there if not _follows(key[1], prefixes)]
    if not left:
        raise UserError(field, source, EXPECTED, _why_none(content))
    first, *others = left
    one, _ = _below(first[1], first[0], content)
    for style, prefix in others:
        other, _ = _below(prefix, style, content)
        if one.keys() != other.keys() or any(not np.array_equal(one[k], other[k]) for k in one):
            shown = " and ".join(repr(at) for _, at in left)
            fix = (
                f"These keys carry the prefixes {shown}: choose with python -m hpt_jax.weights "
                f"import {shlex.quote(source)} DST --prefix {shlex.quote(first[1])}"
            )
            raise UserError(field, source, "one backbone, but it holds several", fix)
    return first


def _follows(prefix: str, prefixes: set[str]) -> bool:
    return any(key in prefix and prefix.replace(key, query) in prefixes for key, query in _FOLLOWS)


def _why_none(content: Content) -> str:
    """What the file holds instead of a backbone, from its names."""
    known = list(content.tensors)
    if any(re.search(r"patch_embed|blocks\.\d+\.attn", name) for name in known):
        return "It is a vision transformer, and not a ResNet."
    if any(re.search(r"stages\.\d+\.(blocks|layers)\.", name) for name in known):
        return "It is another network, or a ResNet of another kind (v2, Hugging Face's)."
    if known and all(re.search(r"fc|head|classifier|linear|projec|predic", name) for name in known):
        return f"It holds a head alone ({known[0]}), without the backbone below it."
    return f"It holds {', '.join(known[:4]) if known else 'no tensors'}: no layer1.0.conv1.weight."


def _below(prefix: str, style: str, content: Content) -> tuple[dict[str, np.ndarray], list[str]]:
    """All tensors below a prefix by torchvision's names, as torch lays them out; notes."""
    tensors = {
        name[len(prefix) :]: value
        for name, value in content.tensors.items()
        if name.startswith(prefix)
    }
    if style == "sequential":
        # Blocks begin at place 4 where relu and max-pool are among the children, else before.
        first = min(int(name[0]) for name in tensors if re.match(r"[2-7]\.\d+\.", name))
        tensors = {_by_module(name, first): value for name, value in tensors.items()}
    tensors = {name.replace(".shortcut.", ".downsample."): v for name, v in tensors.items()}
    split = 0
    for name, value in tensors.items():
        scale = tensors.get(re.sub(r"running_(mean|var)$", "weight", name))
        if scale is None or scale.ndim != 1 or value.ndim != 1:
            continue
        if 0 < len(scale) < len(value) and len(value) % len(scale) == 0:
            split = len(value) // len(scale)
            tensors[name] = value.reshape(split, -1).mean(0, dtype=value.dtype)
    notes = [f"batch norm's statistics are the mean over {split} splits"] if split else []
    return tensors, notes


def _by_module(name: str, first: int) -> str:
    """A name by place as a name by module: 0.weight -> conv1.weight."""
    place, _, rest = name.partition(".")
    if place in ("0", "1"):
        return f"{('conv1', 'bn1')[int(place)]}.{rest}"
    return f"layer{int(place) - first + 1}.{rest}" if place.isdigit() else name


def _dialect(prefix: str, style: str, content: Content) -> str:
    if "_feature_blocks." in prefix:
        return "VISSL"
    if re.search(r"module\.(encoder_q|base_encoder)\.$", prefix):
        return "facebookresearch MoCo"
    if style == "sequential":
        return "lightly (torch.nn.Sequential)"
    if any(".shortcut." in name for name in content.tensors if name.startswith(prefix)):
        return "CIFAR ResNet"
    if _LIGHTNING in content.keys:
        classifier = f"{prefix.rpartition('.')[0].rpartition('.')[0]}.classifier.weight"
        return "solo-learn" if classifier in content.tensors else "Lightning"
    if re.fullmatch(r"state_dict\.(backbone|encoder_q\.0)\.", prefix):
        return "OpenSelfSup or mmselfsup"
    known = re.fullmatch(r"(state_dict\.|model\.)?(module\.)?", prefix)
    return "torchvision or timm" if known else "torchvision's names"


def _simclr(content: Content, field: str, source: str) -> Found:
    """A checkpoint of google-research/simclr, whose tensors are numbered as they were made."""
    pattern = re.compile(
        r"((?:ema_model/)?base_model/)(conv2d|batch_normalization)(?:_(\d+))?/(\w+)"
    )
    heads = [match[1] for name in content.tensors if (match := pattern.fullmatch(name))]
    prefix = min(heads, key=len, default="")
    by_number: dict[tuple[str, int], dict[str, str]] = {}
    for name in content.tensors:
        match = pattern.fullmatch(name)
        if match and match[1] == prefix:
            by_number.setdefault((match[2], int(match[3] or 0)), {})[match[4]] = name
    kernels = [
        content.tensors[by_number["conv2d", number]["kernel"]]
        for number in range(len(by_number))
        if "kernel" in by_number.get(("conv2d", number), {})
    ]
    order = next((modules for modules in _simclr_orders() if _fits(modules, kernels)), None)
    if order is None:
        reason = (
            f"its {len(kernels)} convolutions are not those of such a network: selective kernels "
            "(sk1) and the basic blocks of SimCLR's ResNet-18 and 34 are other networks"
            if kernels
            else "it has no base_model/conv2d/kernel, as google-research/simclr names it"
        )
        raise UserError(field, source, "a ResNet-50, 101 or 152 of SimCLR", f"But {reason}.")
    leaves = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
              "moving_variance": "running_var"}  # fmt: skip
    tensors, used = {}, set()
    for number, module in enumerate(order):
        conv = by_number["conv2d", number]["kernel"]
        tensors[f"{module}.weight"] = content.tensors[conv]
        used.add(conv)
        norm = re.sub(r"conv(\d)$", r"bn\1", module).replace("downsample.0", "downsample.1")
        for leaf, name in by_number.get(("batch_normalization", number), {}).items():
            if leaf in leaves:
                tensors[f"{norm}.{leaves[leaf]}"] = content.tensors[name]
                used.add(name)
    unused = {name: value.shape for name, value in content.tensors.items() if name not in used}
    stem = "simclr" if tensors["conv1.weight"].shape[0] == 7 else "small"
    notes = ["SimCLR's pixels are in [0, 1], not normalised"]
    if stem == "simclr":
        notes.append("its max-pool is padded on the right alone: the stem is 'simclr'")
    return Found("SimCLR, TensorFlow", prefix, tensors, unused, stem, "raw", tuple(notes))


def _simclr_orders() -> Iterator[list[str]]:
    """The convolutions of each depth in the order in which SimCLR makes them."""
    for bottleneck, stages in ARCHITECTURES.values():
        if not bottleneck:
            continue
        order = ["conv1"]
        for layer, blocks in enumerate(stages, 1):
            for block in range(blocks):
                first = ["downsample.0"] if block == 0 else []
                convolutions = (*first, "conv1", "conv2", "conv3")
                order += [f"layer{layer}.{block}.{name}" for name in convolutions]
        yield order


def _fits(order: list[str], kernels: list[np.ndarray]) -> bool:
    return len(order) == len(kernels) and all(
        (kernel.shape[0] == 3) == name.endswith("conv2")
        for name, kernel in zip(order[1:], kernels[1:], strict=True)
    )
