"""What a stage leaves of its health, as the loop would write it: a plausible run, and its end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

QUEUE = 512
METRICS = (
    "step,loss,accuracy,positive_similarity,negative_similarity,gradient_norm,learning_rate,"
    "embedding_std,queue_fill,own_keys"
)


def write_health(folder: Path, steps: int = 400, knn: bool = False, **verdict: Any) -> None:
    """`metrics.csv`, `measures.csv` and `health.json` of a stage that has learnt."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, rows = math.log(QUEUE + 1), [METRICS]
    for step in range(10, steps + 1, 10):
        fill, learnt = min(1.0, step * 4 / QUEUE), 1 - math.exp(-step / 150)
        loss = chance * (0.6 + 0.4 * fill) - 2.5 * learnt + 0.1 * math.sin(step)
        similar = 0.35 + 0.5 * learnt, 0.3 * (1 - learnt)
        gradient, std = 2 * math.exp(-step / 200) + 0.2, 0.4 + 0.55 * learnt
        rows.append(
            f"{step},{loss},{learnt / 2},{similar[0]},{similar[1]},{gradient},0.03,{std},{fill},0.1"
        )
    (folder / "metrics.csv").write_text("\n".join([*rows, ""]))
    rows = ["step,rankme,alignment,uniformity,retrieval" + (",knn" if knn else "")]
    for step in range(0, steps + 1, steps // 10):
        learnt = 1 - math.exp(-step / 150)
        row = f"{step},{12 + 40 * learnt},{0.9 - 0.5 * learnt},{-1 - 2 * learnt},{0.3 + learnt / 2}"
        rows.append(row + (f",{0.5 + 0.3 * learnt}" if knn else ""))
    (folder / "measures.csv").write_text("\n".join([*rows, ""]))
    first = {"step": 50, "level": "watch", "text": "queue 39 % full, too early to tell"}
    last = {"step": steps, "level": "healthy", "text": "loss below chance, features spreading"}
    content = {**last, "history": [first, last], "recommendation": "", **verdict}
    (folder / "health.json").write_text(json.dumps(content))
