"""The notebook for Colab does what it tells, and running all of it again goes on where it was.

Off Colab it installs nothing; that it installs in Colab is not tested here.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.numpy import load_file

from hpt_jax.report.tables import read_results

NOTEBOOK = Path(__file__).parents[2] / "colab" / "hpt_jax.ipynb"
TINY = (
    "image_size=32", "batch_size=8", "moco.queue_size=8", "model.width=4", "parallel.devices=1",
    "log_every_steps=1", "save_every_steps=4",
)  # fmt: skip
STEPS = 40


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Fills in the form."""

    def fill(data: Path | str, steps: int) -> None:
        monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))  # this clone, wherever it runs
        more = " ".join(f"--config.{field}" for field in TINY)
        for name, value in {"DATA": data, "STEPS": steps, "MORE": more}.items():
            monkeypatch.setenv(f"HPT_{name}", str(value))

    return fill


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def codes() -> list[Any]:
    return [cell for cell in read().cells if cell.cell_type == "code"]


def client(folder: Path) -> nbclient.NotebookClient:
    folder.mkdir(exist_ok=True)
    return nbclient.NotebookClient(
        read(), timeout=600, resources={"metadata": {"path": str(folder)}}
    )


def run_all(folder: Path) -> dict[str, list[Any]]:
    """Runs all cells in a new kernel; what each cell shows, by its name."""
    done = client(folder).execute()
    return {cell.id: cell.get("outputs", []) for cell in done.cells}


def texts(outputs: list[Any], kind: str = "text/markdown") -> str:
    """What is shown as text: of a kind, or, with 'stream', printed."""
    if kind == "stream":
        return "".join(one.text for one in outputs if one.output_type == "stream")
    return "\n".join(one.data[kind] for one in outputs if kind in one.get("data", {}))


def pictures(outputs: list[Any]) -> int:
    return sum("image/png" in one.get("data", {}) for one in outputs)


def trained(folder: Path) -> dict[str, bytes]:
    """What a run gives: its table, its curves, and its model."""
    runs = folder / "runs" / "colab"
    kept = [runs / "results.csv", runs / "export" / "backbone.safetensors"]
    kept += [*runs.glob("stages/adapted-*/metrics.csv"), *runs.glob("stages/*/measures.csv")]
    return {str(path.relative_to(runs)): path.read_bytes() for path in kept if path.is_file()}


def test_the_notebook_is_committed_without_outputs_and_valid() -> None:
    nbformat.validate(read())
    for cell in codes():
        assert cell.outputs == []
        assert cell.execution_count is None
        compile(cell.source, cell.id, "exec")


def test_all_cells_show_what_they_tell_and_running_them_again_trains_nothing(
    images: Path, tmp_path: Path, settings: Callable[..., None]
) -> None:
    settings(images / "target", 3)
    shown = run_all(tmp_path)
    assert {name: count for name, one in shown.items() if (count := pictures(one))} == {
        "adapt": 1, "watch": 1, "probe": 1, "neighbours": 2,
    }  # fmt: skip
    runs = tmp_path / "runs" / "colab"
    table = texts(shown["probe"])
    for row in read_results(runs / "results.csv"):
        assert f"{row.evaluation}|{row.arm}|{row.pretrain_steps}|" in table
        assert f"{100 * row.value:.1f} %" in table
    assert "test images a linear probe gets" in table
    assert "retrieval|" in table
    weights = load_file(runs / "export" / "backbone.safetensors")
    assert f"{len(weights)} tensors" in texts(shown["export"], "stream")
    assert "# Backbone" in texts(shown["export"])
    assert "srcdoc" in texts(shown["report"], "text/html")

    before = {path: path.stat().st_mtime_ns for path in runs.glob("stages/**/*")}
    again = run_all(tmp_path)
    after = {path: path.stat().st_mtime_ns for path in runs.glob("stages/**/*")}
    assert after == before
    assert "compiling" not in texts(again["adapt"], "stream")
    assert texts(again["probe"]) == table


@pytest.mark.slow
def test_images_without_labels_have_measures_and_the_notebook_says_why_no_accuracy(
    tmp_path: Path, settings: Callable[..., None]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for index in range(24):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{index}.png")
    settings(tmp_path / "mine", 3)
    shown = run_all(tmp_path / "w")
    told = texts(shown["probe"])
    assert "no labels, so there is no accuracy" in told
    assert "label-free measure|step 0|step 3" in told
    assert pictures(shown["neighbours"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("packed", [".", "field"])
def test_a_zip_file_is_as_the_folder_that_it_holds(
    packed: str, images: Path, tmp_path: Path, settings: Callable[..., None]
) -> None:
    settings(images / "target", 2)
    run_all(tmp_path / "folder")
    shutil.copytree(images / "target", tmp_path / "packed" / packed, dirs_exist_ok=True)
    (tmp_path / "packed" / "__MACOSX").mkdir()
    archive = shutil.make_archive(str(tmp_path / "field"), "zip", tmp_path / "packed")
    settings(archive, 2)
    run_all(tmp_path / "zip")
    one, other = (
        load_file(tmp_path / name / "runs" / "colab" / "export" / "backbone.safetensors")
        for name in ("folder", "zip")
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_form_as_it_is_adapts_to_the_digits(
    tmp_path: Path, settings: Callable[..., None]
) -> None:
    settings("", 3)
    shown = run_all(tmp_path)
    assert "1,797 images" in texts(shown["adapt"], "stream")
    assert "test images" in texts(shown["probe"])


# Disconnected


class Disturbed:
    """Runs all cells, and disturbs them once training is under way."""

    def __init__(self, folder: Path, disturb: Callable[[Any], None]):
        self._client = client(folder)
        self._folder, self._disturb = folder, disturb

    def run(self) -> None:
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        with pytest.raises(
            (nbclient.exceptions.DeadKernelError, nbclient.exceptions.CellExecutionError)
        ):
            self._client.execute()
        watcher.join()

    def _watch(self) -> None:
        end = time.monotonic() + 300
        while not self._under_way():
            assert time.monotonic() < end
            time.sleep(0.02)
        self._disturb(self._client.km)

    def _under_way(self) -> bool:
        """Whether a step is saved that is not the last."""
        found = self._folder.glob("runs/colab/stages/adapted-*/checkpoints/*/manifest.json")
        return any(0 < int(path.parent.name) < STEPS // 2 for path in found)


def kernel_dies(manager: Any) -> None:
    """The kernel alone, as when the session is restarted; what it started is left behind."""
    psutil.Process(manager.provisioner.pid).kill()


def machine_dies(manager: Any) -> None:
    """The kernel with all that it started, as when Colab takes the machine away."""
    kernel = psutil.Process(manager.provisioner.pid)
    for one in [*kernel.children(recursive=True), kernel]:
        one.kill()


def stopped(manager: Any) -> None:
    """The stop button."""
    manager.provisioner.process.send_signal(2)


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [machine_dies, kernel_dies, stopped])
def test_a_run_that_was_disturbed_ends_as_one_that_was_not_when_all_cells_are_run_again(
    disturb: Callable[[Any], None],
    images: Path,
    undisturbed: Path,
    tmp_path: Path,
    settings: Callable[..., None],
) -> None:
    settings(images / "target", STEPS)
    if not trained(undisturbed):
        run_all(undisturbed)
    Disturbed(tmp_path, disturb).run()
    assert not (tmp_path / "runs" / "colab" / "export").exists()
    again = run_all(tmp_path)
    assert trained(tmp_path) == trained(undisturbed)
    if disturb is not kernel_dies:  # what is left behind may have gone on for a while
        assert "continues after step" in texts(again["adapt"], "stream")
