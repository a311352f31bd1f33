"""`labels.csv` at the top of a folder of images: any number of labels an image.

Columns: `image` (path below the folder, with forward slashes), perhaps `split` (train, val or test,
or another name of these), and one for each class. A cell of 1 says that the image has the class; 0,
nothing and -1 (uncertain) say that it has not, which the paper's CheXpert calls U-Zeros.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Collection, Sequence

import numpy as np

from hpt_jax.data.splits import SPLIT_OF, SPLITS
from hpt_jax.errors import Mistake, UserError

NAME = "labels.csv"
_IMAGE, _SPLIT = "image", "split"
_CELLS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": 0, "-1": 0, "-1.0": 0}
# Of wrong lines that one message shows; they tend to be wrong in the same way.
_MOST_SHOWN = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """What the file says, one entry for each image that it names.

    Attributes:
      paths: below the folder, sorted.
      in_split: str[n], the split of each.
      labels: u8[n, classes] of zeros and ones.
      class_names: one for each column of a class.
    """

    paths: tuple[str, ...]
    in_split: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def content_of(root: str) -> bytes | None:
    """The file's bytes, or None where a folder has none.

    Raises:
      UserError: it cannot be read.
    """
    path = os.path.join(root, NAME)
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise UserError(path, None, "a file that can be read", "Remove or rename it.")
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        fix = f"({error.strerror}) Allow it."
        raise UserError(path, None, "a file that can be read", fix) from error


def read(content: bytes, path: str, there: Collection[str]) -> Table:
    """What a table says.

    Args:
      content: of the file.
      path: of the file, for messages.
      there: the images below its folder, with forward slashes.

    Raises:
      UserError: naming file and line, for whatever does not hold together.
    """
    (line, header), *rows = _lines(content, path)
    class_names = _class_names(f"{path}:{line}", header)
    image_at = header.index(_IMAGE)
    split_at = header.index(_SPLIT) if _SPLIT in header else None
    columns = [header.index(name) for name in class_names]
    mistakes: list[Mistake] = []
    named: dict[str, int] = {}  # image -> the line that names it
    splits, labels = [], []
    for line, cells in rows:
        mistake = _mistake_in(cells, header, image_at, split_at, columns, named, there)
        if mistake is not None:
            mistakes.append(dataclasses.replace(mistake, field=f"{path}:{line}"))
            continue
        named[cells[image_at]] = line
        splits.append(SPLITS[0] if split_at is None else SPLIT_OF[cells[split_at]])
        labels.append([_CELLS[cells[column]] for column in columns])
    if mistakes:
        _raise(mistakes)
    if SPLITS[0] not in splits:
        raise UserError(path, None, "at least one row of train", "Add rows.")
    paths = list(named)
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return Table(
        tuple(paths[place] for place in order),
        np.array(splits)[order],
        np.array(labels, np.uint8)[order],
        class_names,
    )


def _lines(content: bytes, path: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the header and of each row; blank lines are passed over."""
    try:
        text = content.decode("utf-8-sig")  # spreadsheets write a mark at the beginning
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [
            (reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)
        ]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}", None, "UTF-8", "Save the file as UTF-8.") from error
    except csv.Error as error:
        raise UserError(
            f"{path}:{reader.line_num}", None, "comma-separated values", f"Mend it: {error}."
        ) from error
    if not lines:
        raise UserError(path, None, "a header and rows", f"Name the columns: {_IMAGE},CLASS,...")
    return lines


def _class_names(where: str, header: Sequence[str]) -> tuple[str, ...]:
    """All columns but those of the image and the split."""
    if _IMAGE not in header:
        raise UserError(
            where,
            ",".join(header),
            f"a column called {_IMAGE}, and commas between columns",
            f"Give the column of paths this name; or rename the file, if it is not the one that "
            f"labels a folder ({NAME}).",
        )
    for name in header:
        if not name:
            fix = "Name the column, or remove it (an index that a program wrote?)."
            raise UserError(where, ",".join(header), "a name for every column", fix)
        if header.count(name) > 1:
            raise UserError(where, name, "columns of different names", "Rename or remove one.")
    classes = tuple(name for name in header if name not in (_IMAGE, _SPLIT))
    if not classes:
        raise UserError(
            where, ",".join(header), "a column for each class", "Add one, with 1 where it applies."
        )
    return classes


def _mistake_in(
    cells: Sequence[str],
    header: Sequence[str],
    image_at: int,
    split_at: int | None,
    columns: Sequence[int],
    named: dict[str, int],
    there: Collection[str],
) -> Mistake | None:
    """The first thing that is wrong with a row; its field is left to be filled in."""
    if len(cells) != len(header):
        expected = f"{len(header)} cells, as in the header, but there are {len(cells)}"
        return Mistake("", ",".join(cells), expected, "Quote cells that hold commas.")
    image = cells[image_at]
    if image in named:
        return Mistake(
            "", image, f"one row an image, but line {named[image]} names it too", "Remove one."
        )
    if image not in there:
        expected = "the path of an image below the folder, with forward slashes (not found)"
        return Mistake("", image, expected, "Mend the path, add the image or remove the row.")
    if split_at is not None and cells[split_at] not in SPLIT_OF:
        expected = f"a split, {', '.join(SPLITS)}"
        return Mistake("", cells[split_at], expected, f"Mend it, or drop the column {_SPLIT}.")
    for column in columns:
        if cells[column] not in _CELLS:
            expected = f"1, 0, -1 or nothing under {header[column]}"
            return Mistake("", cells[column], expected, "Mend it, or drop the column.")
    return None


def _raise(mistakes: Sequence[Mistake]) -> None:
    shown = list(mistakes[:_MOST_SHOWN])
    if more := len(mistakes) - len(shown):
        fix = f"{shown[-1].fix} ({more} more lines are wrong.)"
        shown[-1] = dataclasses.replace(shown[-1], fix=fix)
    raise UserError.of(shown)
