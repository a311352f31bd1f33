"""Every evaluation chooses on validation alone, on the labels that it is allowed."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import optax
import pytest

from hpt_jax.config import Config, Finetune, LinearSGD
from hpt_jax.data.images import ArrayImages, Dataset
from hpt_jax.data.store import Reading, load
from hpt_jax.errors import UserError
from hpt_jax.evaluate import evaluations, features, finetune, linear_sgd
from hpt_jax.evaluate.metrics import score
from hpt_jax.evaluate.subject import Subject
from hpt_jax.feed import Feed
from hpt_jax.models.backbone import init_backbone
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import make_devices

TUNED = Finetune(
    learning_rates=(0.03, 0.003), steps=(6,), epochs=(), batch_size=8, bn_groups=2, eval_every=2,
    crop_scale=(0.5, 1.0),
)  # fmt: skip
CONFIG = Config(
    label_seeds=(0, 5),
    finetune=TUNED,
    linear_sgd=LinearSGD(steps=6, batch_size=8, learning_rates=(1.0, 0.1), eval_every=2),
)
NAMES = ("linear", "knn", "linear_sgd", "linear_9", "finetune_9", "finetune_full")


CLASSES = 3


def nothing(*_):
    pass


def make_subject(multi_label=False, devices=None):
    """A random backbone and 90 images whose colours tell a little of their class."""
    devices = devices or make_devices(1)
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=90).astype(np.int32)
    if multi_label:
        labels = (rng.random((90, CLASSES)) < 0.4).astype(np.uint8)
    tint = 40 * (labels if multi_label else np.eye(CLASSES)[labels])
    pixels = rng.normal(100, 40, (90, 12, 12, 3)) + tint[:, None, None]
    images = ArrayImages("made", np.clip(pixels, 0, 255).astype(np.uint8))
    places = np.arange(90)
    splits = {"train": places[:50], "val": places[50:70], "test": places[70:]}
    names = tuple("abc")
    dataset = Dataset("made", images, splits, "0", lambda: labels, names, multi_label)
    store = load(dataset, Reading(0, 0), 0.0, float("inf"))
    model = ResNet("resnet10", 4, "small")
    mean = np.full(3, 0.5, np.float32)
    return Subject(
        model=model,
        backbone=init_backbone(model, jax.random.key(0), mean, mean / 2),
        feed=Feed(store, devices, devices.replicate(store.pixels)),
        splits=splits,
        labels=labels,
        classes=names,
        metric="macro_auroc" if multi_label else "top1",
        image_size=12,
        center_crop=1.0,
        seed=0,
    )


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_test_labels_choose_nothing(name, multi_label):
    subject = make_subject(multi_label)
    labels, test = subject.labels.copy(), subject.splits["test"]
    labels[test] = 1 - labels[test] if multi_label else (labels[test] + 1) % CLASSES
    changed = dataclasses.replace(subject, labels=labels)
    one, other = (evaluations.evaluate(name, s, CONFIG, nothing) for s in (subject, changed))
    assert one["test_each"] != other["test_each"]
    for field in ("val", "val_each", "selected_by", "selections", "labelled"):
        assert one[field] == other[field], field
    chooses = name != "knn"
    assert len(one["selections"]) == (len(one["test_each"]) if chooses else 0)
    assert one["selected_by"] == ("val" if chooses else "")
    assert one["test"] == pytest.approx(np.mean(one["test_each"]))
    assert json.loads(json.dumps(one))["val"] == one["val"]


@pytest.mark.parametrize("name", NAMES)
def test_progress_counts_the_steps_that_were_announced(name):
    subject, told = make_subject(), []
    evaluations.evaluate(name, subject, CONFIG, lambda done, note: told.append(done))
    images = len(subject.splits["train"])
    assert told == list(range(1, evaluations.steps(name, CONFIG, images) + 1))


@pytest.mark.parametrize("name", ["linear_9", "finetune_9"])
def test_subsets_of_labels_hold_each_class_and_no_image_of_val_or_test(name):
    subject = make_subject()
    found = evaluations.evaluate(name, subject, CONFIG, nothing)
    one, other = found["labelled"]
    assert one != other
    for chosen in (one, other):
        assert len(set(chosen)) == 9
        assert set(chosen) <= set(subject.splits["train"])
        assert set(subject.labels[list(chosen)]) == set(range(CLASSES))


def test_a_subset_of_all_labels_is_the_whole_training_set():
    subject = make_subject()
    whole = evaluations.evaluate("linear", subject, CONFIG, nothing)
    name = f"linear_{len(subject.splits['train'])}"
    assert evaluations.evaluate(name, subject, CONFIG, nothing)["test_each"] == [whole["test"]] * 2


# Fine-tuning


def test_finetuning_is_sgd_with_a_faster_head():
    subject, rate = make_subject(), 0.01
    settings = dataclasses.replace(TUNED, learning_rates=(rate,), weight_decay=0.02, eval_every=6)
    rows = subject.splits["train"][:11]
    found, selection = finetune.tune(subject, rows, settings, 3, nothing)
    assert selection.chosen == {"learning_rate": rate, "steps": 6, "step": 6}

    model = subject.model.clone(layout=subject.feed.devices.group_layout(settings.bn_groups))
    head = linear_sgd.init(3, model.features, CLASSES)
    params = {"backbone": subject.backbone.params, "head": head}
    stats = subject.backbone.batch_stats

    def sgd(multiplier):
        def schedule(step):
            return multiplier * rate * 0.1 ** (1.0 * (step >= 2) + (step >= 4))

        return optax.chain(optax.add_decayed_weights(0.02), optax.sgd(schedule, 0.9))

    optimizer = optax.multi_transform(
        {"slow": sgd(1), "fast": sgd(settings.head_multiplier)},
        {"backbone": "slow", "head": "fast"},
    )
    state = optimizer.init(params)
    for step in range(6):
        plan = features.plan_views(settings, 3, step, rows, subject.feed)
        (batch,) = subject.feed.batches(lambda _, plan=plan: plan, range(1), subject.image_size)
        images = batch["image"].astype(np.float32) / 255
        images = np.where(plan["flip"][:, None, None, None], images[:, :, ::-1], images)
        images = (images - subject.backbone.pixel_mean) / subject.backbone.pixel_std
        labels = subject.labels[features.shown_rows(settings, 3, step, rows)]

        def loss(params, images=images, labels=labels, stats=stats):
            variables = {"params": params["backbone"], "batch_stats": stats}
            out, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
            logits = out @ params["head"]["weights"] + params["head"]["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        stats = new["batch_stats"]
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    expected = (params["backbone"], params["head"], stats)
    given = (found.backbone.params, found.head, found.backbone.batch_stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), given, expected)


def test_one_device_finetunes_as_two_do():
    one, two = (make_subject(devices=make_devices(count)) for count in (1, 2))
    settings = dataclasses.replace(TUNED, learning_rates=(0.003,))
    rows = one.splits["train"][:9]
    (a, _), (b, _) = (finetune.tune(s, rows, settings, 0, nothing) for s in (one, two))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), (a.backbone, a.head),
        (b.backbone, b.head),
    )  # fmt: skip


def test_the_best_of_rates_and_schedules_on_validation_is_kept():
    subject = make_subject()
    settings = dataclasses.replace(TUNED, steps=(4,), epochs=(3,))
    rows = subject.splits["train"][:20]
    tuned, selection = finetune.tune(subject, rows, settings, 0, nothing)
    grid = [(one["learning_rate"], one["steps"]) for one in selection.candidates]
    assert grid == [(0.03, 4), (0.003, 4), (0.03, 9), (0.003, 9)]  # an epoch is 3 batches of 8
    values = [one["value"] for one in selection.candidates]
    assert selection.value == max(values)
    first = selection.candidates[values.index(max(values))]
    assert {**selection.chosen, "value": selection.value} == first
    val = subject.splits["val"]
    again, _ = score("top1", finetune.scores(subject, tuned, val), subject.labels[val])
    assert again == selection.value


def test_finetuning_that_diverges_loses_and_says_so_where_nothing_is_left():
    subject = make_subject()
    rows = subject.splits["train"]
    settings = dataclasses.replace(TUNED, learning_rates=(1e30, 0.003))
    _, selection = finetune.tune(subject, rows, settings, 0, nothing)
    assert selection.chosen["learning_rate"] == 0.003
    settings = dataclasses.replace(TUNED, learning_rates=(1e30,))
    with pytest.raises(UserError, match=r"finetune\.learning_rates"):
        finetune.tune(subject, rows, settings, 0, nothing)


def test_finetuning_changes_nothing_that_is_evaluated_next():
    subject = make_subject()
    before = jax.tree.map(np.array, subject.backbone)
    evaluations.evaluate("finetune_9", subject, CONFIG, nothing)
    jax.tree.map(np.testing.assert_array_equal, before, subject.backbone)


def test_the_papers_grid_has_its_two_rates_and_two_schedules():
    steps = math.ceil(1000 / 256) * 90
    assert finetune.grid(Finetune(), 1000) == (
        (0.01, 2500), (0.001, 2500), (0.01, steps), (0.001, steps),
    )  # fmt: skip
