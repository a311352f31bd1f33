"""Promises of the paper's sixteen datasets: what the code, the configs and TFDS say agrees."""

from pathlib import Path

import numpy as np
import paper_sets
import pytest
import tensorflow_datasets as tfds

from hpt_jax import config as config_lib
from hpt_jax import paper, run
from hpt_jax.data import catalog, store
from hpt_jax.data.datasets import open_dataset
from hpt_jax.paper import DATASETS, TRIPLES, statistics_note

CONFIGS = Path(__file__).parents[1] / "configs"


def test_there_are_sixteen_of_five_domains_and_a_config_for_each():
    domain_net = ("painting", "clipart", "infograph", "sketch", "quickdraw", "real")
    assert set(DATASETS) == {
        "resisc", "uc_merced", "viper", "bdd", "flowers", "chest_xray_kids", "chexpert", "xview",
        "coco_2014", "pascal", *(f"domain_net_{one}" for one in domain_net),
    }  # fmt: skip
    assert {one.domain for one in DATASETS.values()} == {
        "aerial", "driving", "medical", "natural", "illustrations",
    }  # fmt: skip
    assert {path.stem for path in (CONFIGS / "hpt").glob("*.py")} == set(DATASETS)
    assert len({one.dataset for one in DATASETS.values()}) == 16


@pytest.mark.parametrize("name", DATASETS)
def test_each_config_says_what_the_paper_has(name):
    one, path = DATASETS[name], CONFIGS / "hpt" / f"{name}.py"
    config = config_lib.load(str(path))
    assert (config.name, config.base, config.scale) == (name, paper.IMAGENET, "paper")
    assert (config.target, config.domain, config.metric) == (one.dataset, one.domain, one.metric)
    assert config.input.channels == (3 if one.grey else None)
    said = " ".join(path.read_text().split('"""')[1].split())
    assert f"python -m hpt_jax.main --config configs/hpt/{name}.py" in said
    metric = {"top1": "top-1", "macro_auroc": "macro AUROC"}[one.metric]
    assert f"Domain: {one.domain}. Classes: {one.classes}. Metric: {metric}." in said
    for values in (one.pixel_mean, one.pixel_std):
        assert f"({', '.join(f'{value:g}' for value in values)})" in said
    assert all(f"{count:,}" in said for count in one.images.values())


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", DATASETS)
def test_each_config_has_a_plan_without_its_data(name, scale, tmp_path):
    config = config_lib.load(str(CONFIGS / "hpt" / f"{name}.py"))
    overrides = [("scale", scale), ("data_dir", str(tmp_path / "none")), ("dry_run", "True")]
    planned = run.make_plan(config, overrides)
    assert {one.arm for one in planned.runs} >= {"T", "B+T", "HPT-BN"}
    assert (planned.config.target, planned.config.metric) == (config.target, config.metric)
    assert {stage.config.model.arch for stage in planned.stages} == {
        {"small": "resnet10", "paper": "resnet50"}[scale]
    }
    assert run.run(config, tmp_path, overrides) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("triple", TRIPLES)
def test_each_triple_has_a_sequential_plan_without_its_data(triple, tmp_path):
    config = config_lib.load(str(CONFIGS / "studies" / "sequential.py"))
    planned = run.make_plan(
        config, [("triple", triple), ("data_dir", str(tmp_path)), ("dry_run", "True")]
    )
    [chain] = {
        tuple(stage.config.dataset for stage in one.stage.chain)
        for one in planned.runs
        if one.arm == "B+S+T"
    }
    one = TRIPLES[triple]
    assert chain == (one.base, one.source, one.target)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("paper")
    for name in ("viper", "xview"):
        paper_sets.table_folder(root / name, DATASETS[name].classes)
    for name in ("bdd", "chest_xray_kids"):
        paper_sets.class_folder(root / name, DATASETS[name].classes)
    return root


@pytest.fixture(scope="module")
def chexpert(data_dir):
    return paper_sets.chexpert(data_dir)


@pytest.mark.parametrize("name", DATASETS)
def test_each_set_opens_with_its_classes_splits_and_kind_of_labels(
    name, data_dir, chexpert, request
):
    one = DATASETS[name]
    mocked = one.dataset.startswith("tfds:") and name != "chexpert"
    if mocked:
        request.getfixturevalue("mock")
    dataset = open_dataset(one.dataset, "" if mocked else str(data_dir))
    assert len(dataset.class_names) == one.classes
    assert dataset.multi_label == (one.metric == "macro_auroc")
    shape = (one.classes,) if dataset.multi_label else ()
    assert dataset.labels.shape == (len(dataset.images), *shape)
    together = np.concatenate([dataset.splits[split] for split in ("train", "val", "test")])
    assert sorted(together) == list(range(len(dataset.images)))
    assert all(len(ids) for ids in dataset.splits.values())
    if not mocked:
        assert set(dataset.cut) == {"train", "val", "test"} - set(one.images or ("train", "test"))
    stored = {
        channels: store.load(dataset, store.Reading(16, channels), 0.0, np.inf)
        for channels in ([0, 3] if one.grey else [3])
    }
    assert {channels: len(one.moments[0, 0]) for channels, one in stored.items()} == (
        {0: 1, 3: 3} if one.grey else {3: 3}
    )


@pytest.fixture
def mock():
    with tfds.testing.mock_data(num_examples=40):
        yield


def test_chexpert_has_the_five_findings_of_its_competition_uncertain_ones_negative(
    data_dir, chexpert
):
    dataset = open_dataset(DATASETS["chexpert"].dataset, str(data_dir))
    assert dataset.class_names == (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion",
    )  # fmt: skip
    seen = set()
    for split, ids in dataset.splits.items():
        for index in ids:
            level = min(chexpert, key=lambda one: abs(one - dataset.images.read(index).mean()))
            row = chexpert[level]
            assert row["split"] == ("valid" if split == "test" else "train")
            assert dataset.labels[index].tolist() == [
                row[finding] == "1.0" for finding in dataset.class_names
            ]
            seen.add(level)
    assert seen == set(chexpert)
    assert [len(dataset.splits[split]) for split in ("train", "val", "test")] == [54, 6, 30]


def test_chexpert_can_be_read_by_its_views(data_dir, chexpert):
    dataset = open_dataset("tfds:chexpert?label=image_view", str(data_dir))
    assert dataset.class_names == ("frontal", "lateral")
    assert not dataset.multi_label


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resisc", {"train": 31_500}),
        ("uc_merced", {"train": 2_100}),
        ("chexpert", {"train": 223_414, "validation": 234}),
    ],
)
def test_slices_give_the_sizes_that_are_written_down(name, published):
    from tensorflow_datasets.core.splits import SplitDict, SplitInfo

    options = dict(part.split("=") for part in DATASETS[name].dataset.partition("?")[2].split("&"))
    splits = SplitDict([
        SplitInfo(name=split, shard_lengths=[count], num_bytes=0, filename_template=None)
        for split, count in published.items()
    ])  # fmt: skip
    found = {}
    for split, expression in options.items():
        [part] = tfds.core.ReadInstruction.from_spec(expression).to_absolute(splits)
        end = published[part.splitname] if part.to is None else part.to
        found[split] = end - (part.from_ or 0)
    assert found == DATASETS[name].images
    assert set(options) <= set(catalog.OPTIONS)


def test_a_mean_that_is_not_the_papers_is_noted_and_others_are_not():
    resisc = DATASETS["resisc"]
    mean = np.array(resisc.pixel_mean, np.float32)
    assert statistics_note(resisc.dataset, mean + 0.015) is None
    note = statistics_note(resisc.dataset, mean + np.array([0, 0, 0.03]))
    assert "(0.3680, 0.3810, 0.3736)" in note
    assert "resisc (0.3680, 0.3810, 0.3436)" in note
    assert statistics_note("folder:mine", mean + 0.5) is None
    assert statistics_note("tfds:resisc45", mean + 0.5) is None, "another choice of images"
    assert statistics_note(DATASETS["chexpert"].dataset, np.array([0.9])) is None, "read as grey"
