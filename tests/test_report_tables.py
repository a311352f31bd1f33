"""`results.csv` is exact and reproducible; summaries agree with NumPy."""

from __future__ import annotations

import dataclasses
import io
import os
import random

import numpy as np
import pytest
from rich.console import Console

from hpt_jax.errors import UserError
from hpt_jax.report.tables import (
    COLUMNS,
    ResultRow,
    drops,
    interval,
    longest,
    order_arms,
    read_results,
    results_table,
    summarize,
    write_results,
)


def row(arm="T", steps=50, seed=0, value=0.5, evaluation="linear", split="test", **other):
    fields = {
        "study": "digits",
        "stage_id": f"{arm}-{steps}-{seed}",
        "dataset": "package:digits",
        "metric": "top1",
        "selected_by": "val",
        "config_id": "c0ffee",
    } | other
    return ResultRow(
        arm=arm,
        pretrain_steps=steps,
        seed=seed,
        value=value,
        evaluation=evaluation,
        split=split,
        **fields,
    )


def many_rows():
    rng = np.random.default_rng(0)
    return [
        row(arm, steps, seed, rng.random(), evaluation, split)
        for arm in ("T", "B+T@10%", 'odd, "arm"')
        for steps in (25, 100, 1000)
        for seed in (0, 2, 10)
        for evaluation in ("linear", "knn")
        for split in ("val", "test")
    ]


def rendered(table):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_columns_are_the_documented_ones():
    assert ",".join(COLUMNS) == (
        "study,arm,stage_id,dataset,pretrain_steps,evaluation,metric,split,value,seed,"
        "selected_by,config_id"
    )


def test_rows_read_back_exactly(tmp_path):
    path = tmp_path / "results.csv"
    rows = [*many_rows(), row("B", value=1 / 3), row("S", value=np.float64(0.1) + 0.2)]
    write_results(path, rows)
    read = read_results(path)
    assert set(read) == set(rows)
    assert {(type(r.pretrain_steps), type(r.value), type(r.seed)) for r in read} == {
        (int, float, int)
    }


def test_equal_rows_in_any_order_give_equal_bytes(tmp_path):
    rows = many_rows()
    write_results(tmp_path / "a.csv", rows)
    random.Random(0).shuffle(rows)
    write_results(tmp_path / "b.csv", iter(rows))
    content = (tmp_path / "a.csv").read_bytes()
    assert content == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in content


def test_steps_and_seeds_are_sorted_as_numbers(tmp_path):
    write_results(tmp_path / "r.csv", reversed(many_rows()))
    read = [
        r
        for r in read_results(tmp_path / "r.csv")
        if (r.arm, r.evaluation, r.split) == ("T", "knn", "val")
    ]
    assert [(r.pretrain_steps, r.seed) for r in read] == [
        (steps, seed) for steps in (25, 100, 1000) for seed in (0, 2, 10)
    ]


@pytest.mark.parametrize(
    "name", ["a\nb", "a\rb", "a\r\nb", 'a"b', "a,b", "a\0b", " a ", "\udcff", "=1"]
)
def test_any_name_comes_back(tmp_path, name):
    rows = [row(), dataclasses.replace(row(), dataset=name)]
    write_results(tmp_path / "r.csv", rows)
    assert {one.dataset for one in read_results(tmp_path / "r.csv")} == {rows[0].dataset, name}


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_results(path, [row()])
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(path, [row(value=0.9)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_two_answers_to_one_question_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two results"):
        write_results(tmp_path / "r.csv", [row(value=0.1), row(value=0.2)])
    with pytest.raises(ValueError, match="two values for seed 0"):
        summarize([row(value=0.1), row(value=0.2, stage_id="another")])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("study,arm", "arm,study", "columns"),
        (",50,", ",fifty,", "line 2"),
        (",0.5,", ",nan,", "finite"),
        (",c0ffee", "", "12 cells"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, old, new, said):
    path = tmp_path / "results.csv"
    write_results(path, [row()])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=said) as error:
        read_results(path)
    assert str(path) in str(error.value)


def test_summaries_equal_numpys_mean_and_sample_deviation():
    rows = many_rows()
    for split in ("test", "val"):
        summaries = summarize(rows, split)
        assert len(summaries) == 3 * 3 * 2
        for summary in summaries:
            values = [
                r.value
                for r in rows
                if (r.arm, r.pretrain_steps, r.evaluation, r.split)
                == (summary.arm, summary.pretrain_steps, summary.evaluation, split)
            ]
            assert summary.seeds == 3
            assert summary.mean == pytest.approx(np.mean(values), rel=1e-12)
            assert summary.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)


def test_one_seed_has_no_deviation():
    (summary,) = summarize([row(value=0.25)])
    assert (summary.seeds, summary.mean, summary.std) == (1, 0.25, None)


def test_the_table_shows_percent_in_the_given_order_of_arms():
    rows = [row("T", 200, s, v) for s, v in ((0, 0.90), (1, 0.92))]
    rows += [row("T", 50, s, 0.8) for s in (0, 1)]
    rows += [row("B", 0, s, v) for s, v in ((0, 0.5), (1, 0.6))]
    rows += [row("B", 0, s, 0.7, "knn") for s in (0, 1)]
    rows += [row("B", 0, s, 0.123, split="val") for s in (0, 1)]
    text = rendered(results_table(rows, ("T", "B")))
    lines = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["T", "50", "-", "80.0 ± 0.0"],
        ["T", "200", "-", "91.0 ± 1.4"],
        ["B", "0", "70.0 ± 0.0", "55.0 ± 7.1"],
    ]
    assert "n = 2 seeds" in " ".join(text.split())


def test_the_table_says_one_seed_and_counts_unequal_ones():
    assert "one seed" in rendered(results_table([row(value=0.5)], ("T",)))
    unequal = [row("T", seed=0), row("T", seed=1), row("B", 0)]
    text = rendered(results_table(unequal, ()))
    assert "n = 1 to 2 seeds" in " ".join(text.split())
    assert "50.0 ± 0.0 (2)" in text
    assert "50.0 (1)" in text


def test_names_with_brackets_are_shown_as_they_are():
    rows = [row("[bold]x", dataset="folder:[red]")]
    text = rendered(results_table(rows, ()))
    assert "[bold]x" in text
    assert "folder:[red]" in text


def test_studies_and_datasets_are_never_mixed():
    for other in ({"study": "other"}, {"dataset": "other"}):
        with pytest.raises(ValueError, match="one study on one dataset"):
            results_table([row(), dataclasses.replace(row("B"), **other)], ())


def test_arms_come_in_their_first_place_then_by_name():
    order = ("random", "B", "T", "B", "B+T")
    assert order_arms(["z", "B+T", "a", "B", "T"], order) == ["B", "T", "B+T", "a", "z"]


@pytest.mark.parametrize("seeds", [2, 3, 30])
def test_intervals_are_students(seeds):
    from scipy import stats

    values = np.random.default_rng(seeds).uniform(0.4, 0.9, seeds)
    (found,) = summarize(row(seed=seed, value=value) for seed, value in enumerate(values))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(found), (expected.low, expected.high), rtol=1e-12)


def test_one_seed_has_no_interval():
    (found,) = summarize([row()])
    assert interval(found) is None


def test_the_longest_are_found_arm_by_arm():
    rows = [row("T", 50), row("T", 100), row("B+T", 25), row("B", 0), row("T", 100, seed=1)]
    assert longest(rows) == [rows[1], rows[2], rows[3], rows[4]]


def test_drops_compare_like_with_like():
    rows = [
        row("T@full", seed=0, value=0.5),
        row("T@full", seed=1, value=0.6),
        row("T@crop", seed=0, value=0.4),
        row("T@crop", seed=1, value=0.7),
        row("T@crop", seed=2, value=0.9),  # without a partner
        row("B+T@crop", seed=0, value=0.9),  # another arm
        row("T", seed=0, value=0.9),  # no variant
        row("T@crop", seed=0, value=0.9, evaluation="knn"),
    ]
    found = {(r.arm, r.seed): r.value for r in drops(rows, "full")}
    expected = {("T@full", 0): 0, ("T@full", 1): 0, ("T@crop", 0): -0.1, ("T@crop", 1): 0.1}
    assert found == pytest.approx(expected)
