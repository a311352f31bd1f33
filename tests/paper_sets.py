"""Small stand-ins for the sets of the paper that TFDS cannot mock."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from hpt_jax.data.datasets import prepare

# As the header of its table has them.
FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


def grey(path: Path, level: int, size: tuple[int, int] = (14, 12)) -> None:
    """An image of one grey level, by which it can be told again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def chexpert(data_dir: Path, train: int = 60, valid: int = 30) -> dict[int, dict[str, str]]:
    """CheXpert as its site gives it, prepared by TFDS; returns grey level -> row of its table."""
    rng = np.random.default_rng(0)
    manual, rows = data_dir / "downloads" / "manual", {}
    for split, count in [("train", train), ("valid", valid)]:
        table = manual / "CheXpert-v1.0-small" / f"{split}.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
            )
            writer.writeheader()
            for index in range(count):
                view = ("Frontal", "Lateral")[index % 2]
                path = (
                    f"CheXpert-v1.0-small/{split}/patient{index // 2:05}/study1/"
                    f"view{index % 2 + 1}_{view.lower()}.jpg"
                )
                states = rng.choice(["1.0", "0.0", "-1.0", ""], len(FINDINGS))
                row = dict(zip(FINDINGS, (str(state) for state in states), strict=True))
                level = len(rows) * 2 + 10
                grey(manual / path, level)
                writer.writerow({"Path": path, "Age": "50", "Frontal/Lateral": view, **row})
                rows[level] = {**row, "split": split}
    prepare("tfds:chexpert", str(data_dir), lambda line: None)
    return rows


def table_folder(root: Path, classes: int, count: int = 60) -> None:
    """Images of one level each, and a labels.csv with train and test."""
    rng = np.random.default_rng(1)
    names = [f"class{index}" for index in range(classes)]
    lines = [",".join(["image", "split", *names])]
    for index in range(count):
        grey(root / "images" / f"{index:03}.png", index * 3)
        cells = rng.choice(["1", "0", "-1", ""], classes)
        split = "test" if index % 3 == 0 else "train"
        lines.append(",".join([f"images/{index:03}.png", split, *cells]))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def class_folder(root: Path, classes: int, count: int = 12) -> None:
    """`<split>/<class>/<image>`, without val."""
    for split in ("train", "test"):
        for label in range(classes):
            for index in range(count):
                grey(root / split / f"class{label}" / f"{index}.png", label * 20 + index)
