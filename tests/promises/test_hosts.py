"""Several hosts: each makes the rows of its own devices, and together they are the batch."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

BATCHES = """
    import os, sys
    from pathlib import Path
    process, processes, port, folder = (*map(int, sys.argv[1:4]), Path(sys.argv[4]))
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // processes}"
    import jax
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    import numpy as np
    from hpt_jax import config, moco, parallel
    from hpt_jax.data import datasets, order, store
    from hpt_jax.feed import Feed
    from hpt_jax.models.resnet import ResNet

    read = []
    class Counted(store.Store):
        def read(self, row):
            read.append(row)
            return super().read(row)

    dataset = datasets.open_dataset("folder:target", str(folder))
    limit = 1e9 if sys.argv[5] == "resident" else 0
    made = store.load(dataset, store.Reading(18, 0), 0.0, limit)
    made = Counted(**vars(made))
    devices = parallel.make_devices()
    assert devices.count == 4
    held = None if made.pixels is None else devices.replicate(made.pixels)
    stage = config.Stage(
        batch_size=16, image_size=12, moco=config.MoCo(queue_size=16, shuffle_block=8)
    )
    settings = moco.make_settings(stage, ResNet(), 3)

    def plan(step):
        rows = order.batch_indices(0, step, 16, len(made))
        return moco.plan_batch(settings, 0, step, rows, made.sizes[rows])

    for step, batch in enumerate(Feed(made, devices, held).batches(plan, range(3), 12)):
        for name, part in batch.items():
            assert part.shape[0] == 16
            for shard in part.addressable_shards:
                first = shard.index[0].start or 0
                np.save(folder / f"{sys.argv[6]}-{step}-{name}-{first}.npy", shard.data)
    print(len(read))
"""


def run_processes(count: int, folder: Path, pipeline: str, name: str) -> list[int]:
    """Runs the program above in `count` processes of 4 devices in all; images read by each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(BATCHES)]
            + [str(part) for part in (process, count, port, folder, pipeline, name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * count, ended
    return [int(out.split()[-1]) for out, _ in ended]


@pytest.mark.parametrize("pipeline", ["resident", "host"])
def test_two_processes_put_the_same_rows_on_the_devices_as_one(
    images: Path, tmp_path: Path, pipeline: str
) -> None:
    (tmp_path / "target").symlink_to(images / "target")
    run_processes(1, tmp_path, pipeline, "one")
    read = run_processes(2, tmp_path, pipeline, "two")
    expected = sorted(tmp_path.glob("one-*.npy"))
    assert len(expected) == 3 * 4 * 4  # steps, parts of a batch, devices
    for file in expected:
        found = np.load(file.with_name(file.name.replace("one-", "two-")))
        np.testing.assert_array_equal(found, np.load(file), err_msg=file.name)
    if pipeline == "host":  # the shuffle stays within a host, which reads its own slots alone
        assert read == [3 * 8] * 2
