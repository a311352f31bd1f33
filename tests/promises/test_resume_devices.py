"""A run may go on with other devices, mapped in another way, and ends the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support import folder_of, saved, tiny_config

from hpt_jax import run
from hpt_jax.checkpoints import Checkpoints
from hpt_jax.telemetry.writers import read_metrics


class Stopped(Exception):
    """Stands in for a preemption."""


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_as_if_it_had_not_been_stopped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(images)
    config.model.dtype = "float64"
    config.batch_size = 16
    config.save_every_steps = 1
    # Few, since rounding grows tenfold with every step or two; the log's intervals are of two.
    config.stages.target = dict(dataset="folder:target", steps=5)
    config.arms.T = ("target",)
    save = Checkpoints.save

    with jax.enable_x64(True):
        run.run(config, tmp_path / "whole")
        for devices, mapping, stop in [
            (1, "shard_map", 1),
            (2, "shard_map", 3),
            (4, "pmap", 4),
            (1, "shard_map", None),
        ]:

            def save_and_stop(
                self: Checkpoints, step: int, tree: Any, stop: int | None = stop
            ) -> None:
                save(self, step, tree)
                if step == stop:
                    raise Stopped

            monkeypatch.setattr(Checkpoints, "save", save_and_stop)
            config.parallel.update(devices=devices, map=mapping)
            if stop is None:
                run.run(config, tmp_path / "moved")
            else:
                with pytest.raises(Stopped):
                    run.run(config, tmp_path / "moved")

        whole, moved = (folder_of(config, tmp_path / name, "T") for name in ("whole", "moved"))
        for part in ("backbone", "state", "totals"):
            expected, got = saved(whole, part), saved(moved, part)
            assert got.keys() == expected.keys()
            for name, value in expected.items():
                if value.dtype == np.float64:
                    np.testing.assert_allclose(
                        got[name], value, rtol=0, atol=1e-10, err_msg=f"{part} {name}"
                    )
                else:
                    np.testing.assert_array_equal(got[name], value, err_msg=f"{part} {name}")

    expected_rows, rows = read_metrics(whole.metrics), read_metrics(moved.metrics)
    assert [row["step"] for row in rows] == [2, 4, 5]
    for expected_row, row in zip(expected_rows, rows, strict=True):
        assert row.keys() == expected_row.keys()
        for name, text in expected_row.items():
            assert float(row[name]) == pytest.approx(float(text), rel=0, abs=1e-10), name
