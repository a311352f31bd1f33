"""What is read of the small files of a workdir, each as a shape that its content must have.

The files hold more; but a workdir may come from elsewhere, and what is read of it must be what it
is taken for.
"""

from __future__ import annotations

import math
import re
from typing import Any

# A name that can be a file's, and leads nowhere else: of studies, stages and arms.
NAME = re.compile(r"[\w@+%-][\w.@+%-]*")


def _name(value: Any) -> bool:
    return type(value) is str and NAME.fullmatch(value) is not None


def _text(value: Any) -> bool:
    """Text that a file can hold, though perhaps as bytes of a name that are no UTF-8."""
    if type(value) is not str:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _seconds(value: Any) -> bool:
    return _number(value) and value > 0


def _point(value: Any) -> bool:
    return fits(value, [_number]) and len(value) == 2


def _level(value: Any) -> bool:
    return value in ("healthy", "watch", "alarm")


def _evaluation(value: Any) -> bool:
    return type(value) is str and _name(value.removeprefix("evaluations/"))


def _pair(value: Any) -> bool:
    return fits(value, [_text]) and len(value) == 2


def _spread(value: Any) -> bool:
    """Smallest, median and largest."""
    return fits(value, [_count]) and len(value) == 3 and value == sorted(value)


def _classes(value: Any) -> bool:
    """Name -> how many."""
    return fits(value, {...: _count}) and all(map(_text, value))


def _kinds(value: Any) -> bool:
    """A whole number as text -> how many; at least one."""
    return bool(value) and fits(value, {...: _count}) and all(map(str.isdecimal, value))


DONE = {"steps": _count, "steps_timed": _count, "seconds": _seconds, "checkpoint?": _count}
LINEAGE = {
    "id": _name,
    "kin": str,
    "words": str,
    "branch?": (None, {"trunk": str, "step": _count}),
    "seed": _count,
    "config": {
        "dataset": str,
        "init": str,
        "trainable": str,
        "steps": _count,
        "image_size": _count,
        "augment": dict,
        "input": {"center_crop": _number},
        "moco?": {"queue_size": _count},
        "model": {"arch": str, "width": _count, "stem": str, "stem_stride": _count},
    },
    "parents": [{"id": _name}],
    "dataset": (
        None,
        {
            "name": str,
            "fingerprint": str,
            "images": _count,
            "pretrained_on": _count,
            "unreadable": list,
            "pixel_window": (None, list),
            "cut": {...: list},
        },
    ),
    "pixel_mean": [_number],
    "pixel_std": [_number],
    "versions": {...: str},
    "weights?": (
        None,
        {"matched": _count, "expected": _count, "dialect": str, "notes": [str]},
    ),
}
EVALUATION = {
    "val": _share,
    "test": _share,
    "selected_by": str,
    "selections": [{"curve?": [_point]}],
    "labelled": list,
    "test_images?": _count,
}
_VERDICT = {"step": _count, "level": _level, "text": str}
HEALTH = {**_VERDICT, "history": [_VERDICT], "recommendation": str}
_SEEN = {"image": str, "classes": [str]}
NEIGHBOURS = {"queries": [{**_SEEN, "neighbours": [{**_SEEN, "right?": bool}]}]}
PLAN = {
    "study": _name,
    "config_id": str,
    "config": {"evaluations": [_name], "analysis?": str, "domain?": str, "shared?": dict},
    "dataset": _text,
    "metric": _name,
    "runs": [
        {
            "arm": _name,
            "seed": _count,
            "stage_id": _name,
            "chain": [_name],
            "pretrain_steps": _count,
            "evaluations": {...: _evaluation},
            "neighbours?": _name,
            "before?": (None, _name),
        }
    ],
    "choices?": [{"field": _text, "value": _text, "reason": _text}],
    "command?": {"config": str, "workdir": str, "overrides": [[str]]},
}

SURVEY = {
    "dataset": _text,
    "fingerprint": str,
    "images": _count,
    "looked_at": _count,
    "decoders": str,
    "splits": {...: _count},
    "cut": [str],
    "pretrained_on": _count,
    "classes": _classes,
    "multi_label": bool,
    "heights": _spread,
    "widths": _spread,
    "short_sides": _spread,
    "channels": _kinds,
    "depths": _kinds,
    "grey": _count,
    "copies": _count,
    "copies_in_test": _count,
    "copies_named": [_pair],
    "blank": _count,
    "blank_named": [_text],
    "unreadable": _count,
    "unreadable_named": [_pair],
    "pixel_mean": [_number],
    "pixel_std": [_number],
    "window": [_count],
}

FORECAST = {
    "rows": [
        {
            "stage": str,
            "topology": str,
            "images_per_chip": _count,
            "chips": _count,
            "bn_groups": _count,
            "dtype": str,
            "key": str,
            "problem": str,
            "flops": _number,
            "memory_bytes": _number,
            "hbm_bytes": _number,
            "reduced_bytes": _number,
            "gathered_bytes": _number,
            "compile_seconds": _number,
        }
    ]
}


def fits(value: Any, shape: Any) -> bool:
    """Whether a value of JSON has a shape.

    A shape is a type, None, or a function that tells; a list of one shape, for as many as there
    are; a tuple of shapes, of which one must fit; or a dict of shapes by key, where a key with a
    question mark at its end may be absent, and ... stands for all keys. Other keys may be there.
    """
    if isinstance(shape, dict):
        if type(value) is not dict:
            return False
        if ... in shape:
            return all(fits(one, shape[...]) for one in value.values())
        return all(
            fits(value[key.rstrip("?")], one) if key.rstrip("?") in value else key.endswith("?")
            for key, one in shape.items()
        )
    if isinstance(shape, list):
        return type(value) is list and all(fits(one, shape[0]) for one in value)
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if shape is None:
        return value is None
    return type(value) is shape if isinstance(shape, type) else bool(shape(value))
