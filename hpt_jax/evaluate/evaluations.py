"""The evaluations by name: a backbone and labelled images in, one small result out.

Whatever is chosen is chosen on validation, by functions that no test data is given to; then test is
scored once.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hpt_jax.config import Config, labels_of
from hpt_jax.data.splits import subset
from hpt_jax.evaluate import features, finetune, knn, linear, linear_sgd
from hpt_jax.evaluate.metrics import score
from hpt_jax.evaluate.selection import Selection
from hpt_jax.evaluate.subject import Subject


@dataclasses.dataclass(frozen=True)
class Judged:
    """One classifier's scores.

    Attributes:
      val: the metric on validation.
      test: the metric on test.
      undefined: the classes that the metric leaves out on test.
      selection: what was chosen on validation, if anything was.
      labelled: the dataset's images that it was trained on, where they are a subset.
    """

    val: float
    test: float
    undefined: tuple[int, ...]
    selection: Selection | None
    labelled: tuple[int, ...] | None = None


def steps(name: str, config: Config, images: int) -> int:
    """How many SGD steps an evaluation takes with so many training images; 0: seconds of work."""
    if name == "linear_sgd":
        return config.linear_sgd.steps
    if not name.startswith("finetune"):
        return 0
    count, seeds = labels_of(name), len(config.label_seeds)
    grid = finetune.grid(config.finetune, count or images)
    return sum(length for _, length in grid) * (seeds if count else 1)


def evaluate(
    name: str, subject: Subject, config: Config, update: Callable[[int, str], None]
) -> dict[str, Any]:
    """The content of the file of one finished evaluation.

    Args:
      name: of the evaluation.
      subject: what is evaluated.
      config: of the run.
      update: takes how many of the `steps` are done, and a note.

    Returns:
      'val' and 'test', the metric's means over the evaluation's own seeds; 'val_each', 'test_each';
      'undefined_classes', that the metric leaves out on test; 'selected_by', 'selections'; and
      'labelled', the images of each subset of labels; 'test_images', how many were tested on.
    """
    done = itertools.count(1)
    judged = list(_judged(name, subject, config, lambda: update(next(done), "")))
    chosen = [one.selection for one in judged if one.selection]
    return {
        "val": statistics.fmean(one.val for one in judged),
        "test": statistics.fmean(one.test for one in judged),
        "val_each": [one.val for one in judged],
        "test_each": [one.test for one in judged],
        "undefined_classes": list(judged[0].undefined),
        "selected_by": "val" if chosen else "",
        "selections": [dataclasses.asdict(one) for one in chosen],
        "labelled": [one.labelled for one in judged if one.labelled],
        "test_images": len(subject.splits["test"]),
    }


def _judged(
    name: str, subject: Subject, config: Config, tick: Callable[[], None]
) -> Iterator[Judged]:
    """Each classifier of an evaluation: one, or one for each seed of the probe or the subset."""
    if name == "knn":
        yield _knn(subject)
    elif name == "linear_sgd":
        yield from _linear_sgd(subject, config, tick)
    else:
        count = labels_of(name)
        for seed in config.label_seeds if count else (0,):
            rows = subject.splits["train"]
            if count:
                rows = subset(rows, subject.labels, count, seed)
            if name.startswith("linear"):
                one = _linear(subject, rows)
            else:
                one = _finetune(subject, rows, config, seed, tick)
            images = subject.feed.store.index[rows].tolist() if count else None
            yield dataclasses.replace(one, labelled=tuple(images) if images else None)


def _knn(subject: Subject) -> Judged:
    """Weighted kNN with fixed k and temperature: nothing is chosen."""
    train = subject.splits["train"]

    def votes(rows: np.ndarray) -> np.ndarray:
        known, classes = subject.features[train], len(subject.classes)
        return knn.predict(known, subject.labels[train], subject.features[rows], classes)

    val, _ = score(subject.metric, votes(subject.splits["val"]), _labels(subject, "val"))
    return _tested(subject, votes(subject.splits["test"]), val, None)


def _linear(subject: Subject, rows: np.ndarray) -> Judged:
    """The fast linear probe on `rows`; regularisation chosen on val."""
    probe, selection = linear.select(
        subject.features[rows],
        subject.labels[rows],
        subject.features[subject.splits["val"]],
        _labels(subject, "val"),
        len(subject.classes),
        subject.metric,
    )
    test = linear.scores(probe, subject.features[subject.splits["test"]])
    return _tested(subject, test, selection.value, selection)


def _linear_sgd(subject: Subject, config: Config, tick: Callable[[], None]) -> Iterator[Judged]:
    """The paper's linear probe."""
    views = features.augmented(
        subject.model,
        subject.backbone,
        subject.feed,
        subject.splits["train"],
        subject.image_size,
        config.linear_sgd,
        subject.seed,
    )

    def batches() -> Iterator[tuple[Any, np.ndarray]]:
        for batch, rows in views:
            yield batch, subject.labels[rows]
            tick()

    trained = linear_sgd.train(
        batches(),
        subject.features[subject.splits["val"]],
        _labels(subject, "val"),
        len(subject.classes),
        subject.metric,
        config.linear_sgd,
        subject.seed,
    )
    for probe, selection in trained:
        test = linear_sgd.scores(probe, subject.features[subject.splits["test"]])
        yield _tested(subject, test, selection.value, selection)


def _finetune(
    subject: Subject, rows: np.ndarray, config: Config, seed: int, tick: Callable[[], None]
) -> Judged:
    """Fine-tuning on `rows`."""
    own = subject.seed + (seed << 32)  # both are below 2**32
    classifier, selection = finetune.tune(subject, rows, config.finetune, own, tick)
    test = finetune.scores(subject, classifier, subject.splits["test"])
    return _tested(subject, test, selection.value, selection)


def _tested(
    subject: Subject, scores: np.ndarray, val: float, selection: Selection | None
) -> Judged:
    value, undefined = score(subject.metric, scores, _labels(subject, "test"))
    return Judged(val, value, undefined, selection)


def _labels(subject: Subject, split: str) -> np.ndarray:
    return subject.labels[subject.splits[split]]
