"""The surveys of a run's datasets: made once, kept in the workdir, told to the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpt_jax import workdir
from hpt_jax.data import datasets, survey
from hpt_jax.data.images import Dataset
from hpt_jax.telemetry.display import Display


def facts_of(
    name: str, data_dir: str, root: Path, display: Display, dry_run: bool
) -> Mapping[str, Any] | None:
    """The facts of a dataset, told as they are found.

    Args:
      name: of the dataset.
      data_dir: where relative folders and prepared TFDS sets are.
      root: the workdir, where surveys are kept; one that is there is taken.
      display: where it is told.
      dry_run: whether a sample of the images is enough, and nothing is kept.

    Returns:
      As `data.survey.facts` has them; None where a dry run finds no dataset.

    Raises:
      UserError: there is no such dataset, or nothing in it can be read.
    """
    fingerprint, kept = datasets.fingerprint_of(name, data_dir), workdir.surveys_folder(root)
    found = survey.load(kept, name, fingerprint) if fingerprint else None
    if found is None and dry_run and not datasets.is_here(name, data_dir):
        display.line(f"note: {name} is not here; what is chosen here is for 1,000 photographs")
        return None
    if found is None:
        dataset = datasets.open_dataset(name, data_dir)
        found = _sample(dataset) if dry_run else _survey(dataset, root, display)
    for line in survey.lines(found):
        display.line(line)
    return survey.facts(found)


def _sample(dataset: Dataset) -> survey.Survey:
    return survey.survey(dataset, most=survey.SAMPLE)


def _survey(dataset: Dataset, root: Path, display: Display) -> survey.Survey:
    workdir.check_root(root)
    total = min(len(dataset.images), survey.MOST)
    with display.progress(f"looking at {dataset.name}", total) as update:
        found = survey.survey(dataset, lambda done: update(done, ""))
    survey.save(found, workdir.surveys_folder(root))
    return found
