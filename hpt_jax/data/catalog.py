"""`tfds:NAME`: sets of the TensorFlow Datasets catalog, prepared as ArrayRecord, read at random.

`tfds:<name>[/<config>][:<version>][?key=value&...]`; the options are

    image=, label=          keys of features, where they are not found (`label=objects/label`)
    train=, val=, test=     what the splits are, as TFDS writes it (`val=train[80%:]`)

TensorFlow is not imported, unless a copy in the TFRecord format has to be converted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpt_jax.data.decode import decode, whole_size
from hpt_jax.data.images import Dataset
from hpt_jax.data.splits import SPLIT_NAMES, with_cut_splits
from hpt_jax.errors import UserError, nearest

OPTIONS = ("image", "label", "train", "val", "test")
_IMAGE_NAME = "image"  # beside which others are masks or second views
_LABEL_NAMES = ("label", "labels", "objects/label")
# Sets whose `label` looks like a list of classes and is one of findings, in the order of the set's
# own table, each in one of several states: the findings that are read, and their places. Of
# CheXpert's 14 the five of its competition, which the paper's five outputs are taken to be.
_FINDINGS = {
    "chexpert": {
        "Atelectasis": 8,
        "Cardiomegaly": 2,
        "Consolidation": 6,
        "Edema": 5,
        "Pleural Effusion": 10,
    }
}
_POSITIVE = "positive"  # all other states, uncertain ones too, count as negative: "U-Zeros"
_ARRAY_RECORD = "array_record"
# ArrayRecord's writer passes on as a RuntimeError what the operating system told it.
_WRITER_FAILED = re.compile(r"\b(open|write|close)\(\) failed: ")
# Records of a test split that are looked at to see whether it has labels.
_SAMPLE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class CatalogImages:
    """Images of prepared splits, one split after the other, read from ArrayRecord files."""

    name: str
    sources: tuple[Any, ...]
    key: str

    def __len__(self) -> int:
        """How many images there are."""
        return sum(len(source) for source in self.sources)

    def read(self, index: int, short_side: int = 0) -> np.ndarray:
        """One image, u8 or u16[h, w, c]; raises `Unreadable`; from any thread."""
        return decode(self._content(index), self.name_of(index), short_side)

    def whole_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of a JPEG, None of others; raises `Unreadable`."""
        return whole_size(self._content(index), self.name_of(index))

    def _content(self, index: int) -> bytes:
        place = index
        for source in self.sources:
            if place < len(source):
                return source[place][self.key]
            place -= len(source)
        raise IndexError(index)

    def name_of(self, index: int) -> str:
        """The set and the image's place in it."""
        return f"{self.name}[{index}]"


def prepare(place: str, data_dir: str, line: Callable[[str], None]) -> None:
    """Downloads and prepares a set as ArrayRecord, unless it is there.

    Args:
      place: what follows `tfds:`.
      data_dir: where prepared sets are; '': TFDS's own default.
      line: where it is told.

    Raises:
      UserError: it cannot be had; says what TFDS says.
    """
    builder, _ = _builder(place, data_dir)
    if _is_prepared(builder):
        return
    where = builder.data_dir
    if builder.info.splits:
        line(f"tfds:{place}: converting {where} from {_format(builder)} to ArrayRecord")
        expected = f"a folder where its {_format(builder)} files can be converted to ArrayRecord"
        fix = f"Allow writing to {where} and make room, or set data_dir to where it is prepared."
        with _explained(place, expected, fix):
            _convert(builder)
        return
    line(f"tfds:{place}: downloading and preparing it in {where}")
    fix = "Do as it says; or set data_dir to where a prepared copy is."
    with _explained(place, "a set that TFDS can prepare", fix):
        builder.download_and_prepare(file_format=_ARRAY_RECORD)


@contextlib.contextmanager
def _explained(place: str, expected: str, fix: str) -> Iterator[None]:
    """Makes a user's mistake of what network, disk and installed packages keep TFDS from doing."""
    from tensorflow_datasets.core.download import download_manager, extractor, util

    try:
        yield
    except RuntimeError as error:
        if not _WRITER_FAILED.search(str(error)):
            raise
        found: Exception = error
    except (
        AssertionError,  # tells what has to be downloaded by hand
        ImportError,
        OSError,
        util.DownloadError,
        download_manager.NonMatchingChecksumError,
        extractor.ExtractError,
    ) as error:
        found = error
    else:
        return
    says = f"{expected}, but TFDS says: {found}"
    raise UserError("dataset", f"tfds:{place}", says, fix) from found


def fingerprint_of_catalog(place: str, data_dir: str) -> str | None:
    """Changes with name, version, sizes of splits and options; None where it is not prepared.

    Raises:
      UserError: there is no such set or option.
    """
    builder, options = _builder(place, data_dir)
    return _fingerprint(place, builder, options) if _is_prepared(builder) else None


def open_catalog(name: str, place: str, data_dir: str, fractions: dict[str, float]) -> Dataset:
    """Opens a prepared set.

    Splits are found by their names unless options say otherwise; others (`unlabelled`, `test2015`)
    are left alone. Of a test split without labels, as ImageNet's or COCO's, the validation split
    takes the place, and validation is cut from train, as the paper has it.

    Args:
      name: as the config names it.
      place: what follows `tfds:`.
      data_dir: where prepared sets are; '': TFDS's own default.
      fractions: share of train that becomes 'val' and 'test' where there is none.

    Raises:
      UserError: it is not prepared, or has no images, no splits or no labels that could be told.
    """
    builder, options = _builder(place, data_dir)
    if not _is_prepared(builder):
        raise UserError(
            "dataset",
            name,
            f"a prepared set (not found: {builder.data_dir})",
            "Set data_dir to where it is; a run that is not dry prepares it.",
        )
    features = dict(builder.info.features)
    expressions = _expressions(name, builder, options)
    image_key = _image_key(name, features, options)
    label = _label(name, features, options, _FINDINGS.get(builder.name, {}))

    def labels_of(expression: str, most: int | None = None) -> np.ndarray:
        assert label is not None
        source = _source(name, place, data_dir, label.features, expression)
        indices = np.arange(len(source))
        if most is not None:
            indices = indices[:: -(-len(source) // most)]
        return label.numbers([source[int(index)] for index in indices])

    if label is not None and "test" in expressions and "test" not in options:
        sample = labels_of(expressions["test"], _SAMPLE)
        if (sample < 0).all() if sample.ndim == 1 else not sample.any():
            del expressions["test"]
            if "val" in expressions and "val" not in options:
                expressions["test"] = expressions.pop("val")

    import tensorflow_datasets as tfds

    skip = {image_key: tfds.decode.SkipDecoding()}
    only_image = {image_key: features[image_key]}
    sources = {
        split: _source(name, place, data_dir, only_image, expression, skip)
        for split, expression in expressions.items()
    }
    ends = np.cumsum([len(source) for source in sources.values()])
    given = {
        split: np.arange(end - len(source), end)
        for (split, source), end in zip(sources.items(), ends, strict=True)
    }
    images = CatalogImages(name, tuple(sources.values()), image_key)
    fingerprint = _fingerprint(place, builder, options)
    if label is None:
        return Dataset(name, images, given, fingerprint)
    cache = Path(builder.data_dir) / f"labels-{fingerprint}.npy"
    read_labels = functools.partial(_cached, cache, expressions, labels_of)
    whole = len(given) == len(SPLIT_NAMES)
    splits, cut = (given, ()) if whole else with_cut_splits(given, read_labels(), fractions)
    return Dataset(
        name, images, splits, fingerprint, read_labels, label.classes, label.several, cut
    )


def _cached(
    path: Path, expressions: Mapping[str, str], labels_of: Callable[[str], np.ndarray]
) -> np.ndarray:
    """All labels, kept beside the records: reading them means reading every image's bytes."""
    if path.is_file():
        return np.load(path)
    labels = np.concatenate([labels_of(expression) for expression in expressions.values()])
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.save(file, labels)
        partial.replace(path)
    except OSError:
        pass  # a shared copy that may only be read: it works, and takes longer
    return labels


# Names and options


def _builder(place: str, data_dir: str) -> tuple[Any, dict[str, str]]:
    """TFDS's builder of a set, made anew, and the options."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    reference, _, query = place.partition("?")
    options = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        if key not in OPTIONS or not value:
            raise UserError(
                "dataset",
                f"tfds:{place}",
                f"options {', '.join(f'{option}=' for option in OPTIONS)}, but found {part!r}",
                nearest(key, OPTIONS),
            )
        options[key] = value
    where = {"data_dir": os.path.expanduser(data_dir)} if data_dir else {}
    try:
        builder = tfds.builder(reference, **where)
    except DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            "dataset",
            f"tfds:{place}",
            "a set of the TFDS catalog",
            nearest(reference.partition("/")[0].partition(":")[0], known),
        ) from None
    # What TFDS raises for a config or a version that there is not.
    except (ValueError, AssertionError) as error:
        raise UserError(
            "dataset",
            f"tfds:{place}",
            "a config and a version that the set has",
            f"TFDS says: {_message(error)}",
        ) from None
    # TFDS writes down the formats that a copy has besides its first, and does not read them back.
    if _ARRAY_RECORD in builder.info.as_proto.alternative_file_formats:
        builder.info.add_alternative_file_format(_ARRAY_RECORD)
    return builder, options


def _with(name: str, option: str, value: str) -> str:
    """A dataset's name with one more option."""
    return f"{name}{'&' if '?' in name else '?'}{option}={value}"


def _message(error: Exception) -> str:
    """What TFDS says, in one line, without the arguments that it repeats first."""
    return " ".join(str(error).rpartition('}": ')[2].split())


def _is_prepared(builder: Any) -> bool:
    """Whether the set can be read at random."""
    try:
        builder.as_data_source(next(iter(builder.info.splits), "train"))
    except NotImplementedError:  # not prepared, or in a format without random access
        return False
    return True


def _format(builder: Any) -> str:
    return builder.info.file_format.value


def _fingerprint(place: str, builder: Any, options: Mapping[str, str]) -> str:
    expressions = _expressions(f"tfds:{place}", builder, options)
    sizes = {expression: len(builder.as_data_source(expression)) for expression in
             [*builder.info.splits, *expressions.values()]}  # fmt: skip
    text = repr((builder.info.full_name, sorted(sizes.items()), sorted(options.items())))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# Splits


def _expressions(name: str, builder: Any, options: Mapping[str, str]) -> dict[str, str]:
    """Our split -> what it is in TFDS's words."""
    # A set whose metadata TFDS has not read names no split; all have one called train.
    names = list(builder.info.splits) or ["train"]
    found = {}
    for split, candidates in SPLIT_NAMES.items():
        there = [candidate for candidate in candidates if candidate in names]
        if split in options or there:
            found[split] = options.get(split) or there[0]
    if "train" not in found:
        raise UserError(
            "dataset",
            name,
            f"a split called train, but its splits are {', '.join(names)}",
            f"Say which to train on, for example {_with(name, 'train', names[0])}",
        )
    _check_disjoint(name, builder, found)
    return found


def _check_disjoint(name: str, builder: Any, expressions: Mapping[str, str]) -> None:
    import tensorflow_datasets as tfds

    known = builder.info.splits
    if not known:
        return
    taken: list[tuple[str, str, int, int]] = []
    for ours, expression in expressions.items():
        try:
            parts = tfds.core.ReadInstruction.from_spec(expression).to_absolute(known)
        except (ValueError, AssertionError) as error:
            raise UserError(
                "dataset",
                name,
                f"{ours}= in TFDS's words, such as train[80%:], of its splits {', '.join(known)}",
                f"TFDS says: {_message(error)}",
            ) from None
        for part in parts:
            # TFDS leaves out the ends of a whole split.
            whole = known[part.splitname].num_examples
            begin, end = part.from_ or 0, whole if part.to is None else part.to
            for other, split, start, stop in taken:
                if other != ours and split == part.splitname and begin < stop and start < end:
                    raise UserError(
                        "dataset",
                        name,
                        f"splits that share no image, but {ours} and {other} do",
                        "Change the options train=, val= and test=.",
                    )
            taken.append((ours, part.splitname, begin, end))


def _source(
    name: str,
    place: str,
    data_dir: str,
    features: Mapping[str, Any],
    expression: str,
    decoders: Any = None,
) -> Any:
    """Random access to some features of a split."""
    import tensorflow_datasets as tfds

    builder, _ = _builder(place, data_dir)
    # The others are then neither parsed nor decoded. TFDS's PartialDecoding is meant for this and
    # fails for data sources (4.9.10).
    builder.info._features = tfds.features.FeaturesDict(dict(features))
    source = builder.as_data_source(expression, decoders=decoders)
    if not len(source):
        raise UserError("dataset", name, f"images in the split {expression}", "It is empty.")
    return source


# Features


@dataclasses.dataclass(frozen=True, eq=False)
class _Label:
    """Where a record's label is, and how it becomes a number or several.

    Attributes:
      path: the keys that lead to it.
      features: the features that have to be read.
      classes: names.
      several: whether a record may have any number of labels.
      findings: (state that counts, places of `classes` in a list of states), for such a list.
    """

    path: tuple[str, ...]
    features: Mapping[str, Any]
    classes: tuple[str, ...]
    several: bool
    findings: tuple[int, tuple[int, ...]] | None = None

    def numbers(self, records: list[Any]) -> np.ndarray:
        """i32[n], or u8[n, classes] of zeros and ones."""
        found = [functools.reduce(lambda inner, key: inner[key], self.path, r) for r in records]
        if not self.several:
            return np.array(found, np.int32)
        labels = np.zeros((len(found), len(self.classes)), np.uint8)
        for row, one in enumerate(found):
            if isinstance(one, Mapping):
                labels[row] = [one[name] for name in self.classes]
            elif self.findings is not None:
                state, places = self.findings
                labels[row] = np.asarray(one)[list(places)] == state
            else:
                present = np.asarray(one, np.int64)
                labels[row, present[present >= 0]] = 1  # -1 is a label that was kept back
        return labels


def _image_key(name: str, features: Mapping[str, Any], options: Mapping[str, str]) -> str:
    import tensorflow_datasets as tfds

    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    wanted = options.get("image") or (images[0] if len(images) == 1 else _IMAGE_NAME)
    if wanted in images:
        return wanted
    raise UserError(
        "dataset",
        name,
        f"one image a record; its features of images are: {', '.join(images) or 'none'}",
        f"Say which, for example {_with(name, 'image', images[0])}"
        if images
        else "Take another set.",
    )


def _label(
    name: str,
    features: Mapping[str, Any],
    options: Mapping[str, str],
    findings: Mapping[str, int],
) -> _Label | None:
    """Where the labels are; None for a set that has none."""
    found = _labels_in(features, findings)
    wanted = options.get("label")
    if wanted is not None:
        if wanted not in found:
            known = f"It has {', '.join(found) or 'none'}."
            raise UserError("dataset", name, f"labels under {wanted!r}", known)
        return found[wanted]
    for key in _LABEL_NAMES:
        if key in found:
            return found[key]
    if len(found) > 1:
        raise UserError(
            "dataset",
            name,
            f"one feature of labels, but it has {', '.join(found)}",
            f"Say which, for example {_with(name, 'label', next(iter(found)))}",
        )
    return next(iter(found.values()), None)


def _labels_in(features: Mapping[str, Any], findings: Mapping[str, int]) -> dict[str, _Label]:
    """All features that can be labels.

    A class; a list of classes, or of findings' states; objects with a class each; named answers,
    each yes or no.
    """
    import tensorflow_datasets as tfds

    found = {}
    for key, value in features.items():
        if isinstance(value, tfds.features.FeaturesDict):
            names = tuple(value.keys())
            if all(value[name].np_dtype == np.bool_ and not value[name].shape for name in names):
                found[key] = _Label((key,), {key: value}, names, True)
        elif isinstance(value, tfds.features.ClassLabel):
            found[key] = _Label((key,), {key: value}, tuple(value.names), False)
        elif isinstance(value, tfds.features.Sequence):
            inner = value.feature
            if findings and isinstance(inner, tfds.features.ClassLabel):
                read = (inner.str2int(_POSITIVE), tuple(findings.values()))
                found[key] = _Label((key,), {key: value}, tuple(findings), True, read)
            elif isinstance(inner, tfds.features.ClassLabel):
                found[key] = _Label((key,), {key: value}, tuple(inner.names), True)
            elif isinstance(inner, Mapping) or hasattr(inner, "keys"):
                for part in inner.keys():  # noqa: SIM118 (a FeaturesDict is no mapping)
                    if isinstance(inner[part], tfds.features.ClassLabel):
                        only = {key: tfds.features.Sequence({part: inner[part]})}
                        names = tuple(inner[part].names)
                        found[f"{key}/{part}"] = _Label((key, part), only, names, True)
    return found


# Conversion


def _convert(builder: Any) -> None:
    """Writes ArrayRecord files beside a copy in another format, then says so in its metadata.

    Each file is renamed into place when it is whole, and the metadata is written last: what is
    interrupted is taken up again.
    """
    from tensorflow_datasets.core import constants, dataset_info, file_adapters

    out = file_adapters.FileFormat(_ARRAY_RECORD)
    reader = file_adapters.ADAPTER_FOR_FORMAT[builder.info.file_format]
    writer = file_adapters.ADAPTER_FOR_FORMAT[out]
    folder = Path(builder.data_dir)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=folder) as scratch:
        for split in builder.info.splits.values():
            template = split.filename_template
            made = template.replace(filetype_suffix=out.file_suffix)
            for shard in range(split.num_shards):
                there = {"shard_index": shard, "num_shards": split.num_shards}
                target = Path(made.sharded_filepath(**there))
                if target.is_file():
                    continue
                partial = Path(scratch) / target.name
                records = reader.make_tf_data(template.sharded_filepath(**there))
                writer.write_examples(partial, enumerate(records.as_numpy_iterator()))
                partial.replace(target)
        builder.info.add_alternative_file_format(out)
        dataset_info.write_dataset_info_proto(builder.info.as_proto, dataset_info_dir=scratch)
        written = Path(scratch) / constants.DATASET_INFO_FILENAME
        written.replace(folder / written.name)
