"""Writes the golden files: what every shipped config means, one line a value.

    python tests/golden_configs/make.py

`defaults.txt` has every field at its default, `constants.txt` the recipe's numbers that are no
fields. A config's file has what differs from the defaults: of a stage, what differs from the
config's shared fields; of `configs/hpt/`, what differs from `studies/separability`, whose analysis
they are. So the files pin every value, and most that change show in one place.

A study and `adapt` are resolved in several variants, whose names stand first on the line.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpt_jax import config as config_lib
from hpt_jax import paper, resolve, studies
from hpt_jax.augment.policies import POLICIES
from hpt_jax.config import AdaptFields, Config, StudyFields
from hpt_jax.data import datasets, statistics
from hpt_jax.evaluate import features, knn, linear, linear_sgd
from hpt_jax.models.batch_norm import BatchNorm
from hpt_jax.models.resnet import ARCHITECTURES, ResNet
from hpt_jax.weights import load

FOLDER = Path(__file__).parent
CONFIGS = FOLDER.parents[1] / "configs"

# Path of a value -> its `repr`, in the order of declaration.
Flat = dict[str, str]

ABSENT = "(as the default)"  # of a value that only the reference has

# template -> variant -> overrides
VARIANTS: dict[str, dict[str, list[tuple[str, str]]]] = {
    "stages": {"": []},
    "study": {f"{scale}.": [("scale", scale)] for scale in studies.SCALES},
    "adapt": {
        "random.": [("data", "package:digits")],
        "pretrained.": [("data", "package:digits"), ("init", "CHECKPOINT")],
    },
}


def make() -> dict[str, str]:
    """Name of each golden file -> the text that it should hold."""
    files = {"defaults": _defaults(), "constants": _constants()}
    for path in sorted(CONFIGS.rglob("*.py")):
        name = path.relative_to(CONFIGS).with_suffix("").as_posix()
        files[name] = {
            f"{variant}{field}": value
            for variant, config in resolved(name).items()
            for field, value in _settings(config).items()
        }
    for name in files:
        if name.startswith("hpt/"):
            files[name] = _differences(files[name], files["studies/separability"])
    return {
        f"{name}.txt": "".join(f"{path} = {value}\n" for path, value in flat.items())
        for name, flat in files.items()
    }


def stored() -> dict[str, str]:
    """Name of each golden file -> the text that it holds."""
    return {
        path.relative_to(FOLDER).as_posix(): path.read_text()
        for path in sorted(FOLDER.rglob("*.txt"))
    }


def resolved(name: str) -> dict[str, Config]:
    """A shipped config by its path below `configs/`, in each variant; as if no set were there.

    But for a package's, which is the same everywhere, and from which `adapt` can choose.
    """

    def facts(dataset: str) -> Mapping[str, Any] | None:
        return datasets.inspect(dataset) if dataset.startswith("package:") else None

    config = config_lib.load(str(CONFIGS / f"{name}.py"))
    return {  # without choices, which say in words why other fields are what they are
        variant: dataclasses.replace(resolve.resolve(config, overrides, facts), choices=())
        for variant, overrides in VARIANTS[config.template].items()
    }


def _defaults() -> Flat:
    """Every field; those of stages are below `shared`, a template's own below its name."""
    own = {"adapt": AdaptFields(), "study": StudyFields()}
    return _flatten(Config()) | _flatten({"templates": own})


def _constants() -> Flat:
    """Policies, where they differ from the default one, and numbers that no config sets."""
    default = _flatten(config_lib.Stage().augment)
    policies: Flat = {}
    for name, policy in POLICIES.items():
        own = _differences(_flatten(policy), default)
        policies |= {f"policies.{name}.{part}": value for part, value in own.items()}
    votes = inspect.signature(knn.predict).parameters
    return policies | _flatten({
        "batch_norm": {"momentum": ResNet.bn_momentum, "epsilon": BatchNorm.epsilon},
        "architectures": ARCHITECTURES,
        "linear": {
            "strengths": linear.GRID,
            "tolerance": linear._TOLERANCE,
            "iterations": linear._MAX_ITERATIONS,
        },
        "linear_sgd": {"momentum": linear_sgd.MOMENTUM, "weight_std": linear_sgd.WEIGHT_STD},
        "supervised_crop_ratio": features._CROP_RATIO,
        "knn": {name: votes[name].default for name in ("k", "temperature")},
        "imagenet": {"mean": load.IMAGENET_MEAN, "std": load.IMAGENET_STD},
        "pixel_std_floor": statistics.STD_FLOOR,
        "triples": paper.TRIPLES,
    })  # fmt: skip


def _settings(config: Config) -> Flat:
    """What differs from the defaults, and of a stage from the config's shared fields."""
    reference = _flatten(Config())
    for name in config.stages:
        reference |= _flatten(config.shared, f"stages.{name}")
    return _differences(_flatten(config), reference)


def _flatten(value: Any, path: str = "") -> Flat:
    """The leaves of dataclasses and mappings."""
    inner = vars(value) if dataclasses.is_dataclass(value) else value
    if not isinstance(inner, Mapping):
        return {path: repr(inner)}
    flat: Flat = {}
    for name, one in inner.items():
        flat |= _flatten(one, f"{path}.{name}" if path else name)
    return flat


def _differences(found: Flat, reference: Flat) -> Flat:
    changed = {path: value for path, value in found.items() if reference.get(path) != value}
    return changed | {path: ABSENT for path in reference if path not in found}


def main() -> None:
    """Accepts what the configs mean now."""
    wanted = make()
    for name in stored().keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
