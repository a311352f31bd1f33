"""The fast linear probe beside the paper's, on the backbones of `configs/aerial.py`.

    python -m hpt_jax.main --config configs/probes.py --workdir runs/aerial --config.data_dir=DIR

DIR as for aerial.py. In a workdir where aerial.py has run, nothing is trained: the stages are the
same, and the probes alone are left to do. Several `linear_sgd.learning_rates` cost as much as one.

Expected: test top-1 of linear and linear_sgd, one seed: random features 47.4 and 46.1, B 53.4 and
49.3, T 51.0 and 51.2, B+S+T 58.6 and 51.7 (docs/probes.md). Wall time 40 minutes on 2 cores of an
Intel Xeon, no GPU, nearly all of it the four linear_sgd; 5 more where the stages are still to do.
"""

from pathlib import Path

from ml_collections import ConfigDict

from hpt_jax.config import load

ARMS = ("random", "B", "T", "B+S+T")


def get_config() -> ConfigDict:
    """The config."""
    config = load(str(Path(__file__).with_name("aerial.py")))
    config.name = "probes"
    config.seeds = (0,)
    config.evaluations = ("linear", "linear_sgd", "knn")
    for stage in ("scratch", "target"):
        config.stages[stage].steps = config.stages[stage].steps[-1]  # each arm once
    for arm in [arm for arm in config.arms if arm not in ARMS]:
        del config.arms[arm]
    return config
