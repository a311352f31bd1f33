"""Mistakes one could make in a MoCo-v2, as edits of this package, and the tests that see them.

    python tests/parity/mutations.py

prints the table of docs/fidelity.md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hpt_jax"

_KEPT = "tests/parity/test_parity_golden.py::test_ten_steps_equal_the_kept_traces_of_pytorch"
_MOCO, _HPT_BN, _STATISTICS = (f"{_KEPT}[{name}]" for name in ("moco", "hpt_bn", "statistics"))


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
      what: in words.
      file: below the package.
      edits: (old, new) pieces of its text; every old one occurs once.
      caught_by: the tests that fail, as pytest names them.
    """

    what: str
    file: str
    edits: tuple[tuple[str, str], ...]
    caught_by: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file with the mistake in it.

        Raises:
          ValueError: a piece is not there, or more than once.
        """
        for old, new in self.edits:
            if text.count(old) != 1:
                raise ValueError(f"{self.what}: {self.file} has {text.count(old)} of {old!r}")
            text = text.replace(old, new)
        return text


_UPDATE = "    key_params = momentum_update(state.key_params, params, settings.momentum)\n"
_NEW_PARAMS = "    params = traverse_util.unflatten_dict({**trained, **frozen})\n    (queue"
_POSITIVES = "    positives = lax.dynamic_slice_in_dim(keys, first, rows)\n"
_GATHER = "unshuffle(*gathered[:2])"
_ENQUEUE = "enqueue(state.queue, state.queue_pointer, state.queue_fill, keys)"
_DECAY = "optax.add_decayed_weights(self.weight_decay)"
_TRACE = "optax.trace(self.sgd_momentum)"
_SHUFFLE = "slots = order.shuffle(seed, step, _SHUFFLE, len(rows), settings.shuffle_block)"
_RUNNING = "(running_mean, mean), (running_var, unbiased)"

MUTATIONS = (
    Mutation(
        "batch norm's momentum is flax's .9, not torch's .1",
        "models/resnet.py",
        (("bn_momentum: float = 0.1", "bn_momentum: float = 0.9"),),
        (_MOCO,),
    ),
    Mutation(
        "running variances are biased",
        "models/batch_norm.py",
        ((_RUNNING, "(running_mean, mean), (running_var, var)"),),
        (_MOCO, _STATISTICS),
    ),
    Mutation(
        "batch norm's epsilon is 1e-3",
        "models/batch_norm.py",
        (("epsilon: float = 1e-5", "epsilon: float = 1e-3"),),
        (_MOCO,),
    ),
    Mutation(
        "batch norm is global instead of in 4 groups",
        "training.py",
        (("layout=devices.group_layout(model.bn_groups)", "layout=devices.group_layout(1)"),),
        (_MOCO,),
    ),
    Mutation(
        "convolutions are padded as XLA's SAME",
        "models/resnet.py",
        (
            (
                "padding=kernel // 2",
                "padding=[((kernel - stride) // 2 * (kernel > 1), (kernel - stride + 1) // 2)] * 2",
            ),
        ),
        (_MOCO,),
    ),
    Mutation(
        "a bottleneck's stride is on its first 1x1",
        "models/resnet.py",
        (
            (
                'self._conv(x, channels, 1, 1, f"{name}_conv1")',
                'self._conv(x, channels, 1, stride, f"{name}_conv1")',
            ),
            (
                'y = self._conv(y, channels, 3, stride, f"{name}_conv2")',
                'y = self._conv(y, channels, 3, 1, f"{name}_conv2")',
            ),
        ),
        (_HPT_BN,),
    ),
    Mutation(
        "keys are not shuffled",
        "moco.py",
        ((_SHUFFLE, "slots = np.arange(len(rows))"),),
        (
            "tests/test_moco.py::test_keys_are_shuffled_within_their_block_alone[64]",
            "tests/promises/test_steps.py::"
            "test_shuffling_changes_what_the_key_encoders_batch_statistics_see",
        ),
    ),
    Mutation(
        "shuffled keys are not put back in order",
        "moco.py",
        ((_GATHER, "gathered[0]"),),
        (_MOCO,),
    ),
    Mutation(
        "the key encoder is updated after the query's step",
        "moco.py",
        (
            (_UPDATE, "    key_params = state.key_params\n"),
            (_NEW_PARAMS, _NEW_PARAMS.replace("    (queue", _UPDATE + "    (queue")),
        ),
        (_MOCO,),
    ),
    Mutation(
        "the key encoder is in evaluation mode",
        "moco.py",
        (
            (
                'return _features(settings, params["backbone"], state.key_batch_stats, views)',
                'encoder = params["backbone"]\n'
                "        return _features(settings, encoder, state.key_batch_stats, views, False)",
            ),
            (
                "params: Any, batch_stats: Any, images: jax.Array\n)",
                "params: Any, batch_stats: Any, images: jax.Array, train: bool = True\n)",
            ),
            ("train=True,", "train=train,"),
        ),
        (_MOCO,),
    ),
    Mutation(
        "keys enter the queue before it is used",
        "moco.py",
        (
            (
                _POSITIVES,
                f"{_POSITIVES}    used = dataclasses.replace(state, queue={_ENQUEUE}[0])\n",
            ),
            ("= _queries(settings, state,", "= _queries(settings, used,"),
            (
                "_, metrics = info_nce(queries, positives, state",
                "_, metrics = info_nce(queries, positives, used",
            ),
        ),
        (_MOCO,),
    ),
    Mutation(
        "embeddings are not normalised",
        "moco.py",
        (("return normalized(embeddings.astype", "return (embeddings.astype"),),
        (_MOCO,),
    ),
    Mutation(
        "the temperature is MoCo v1's .07",
        "config.py",
        (("temperature: float = 0.2", "temperature: float = 0.07"),),
        (_MOCO,),
    ),
    Mutation(
        "batch norm and biases are exempt from decay",
        "moco.py",
        (
            (
                _DECAY,
                "optax.add_decayed_weights(self.weight_decay, "
                'lambda flat: {path: path[-1] == "kernel" for path in flat})',
            ),
        ),
        (_MOCO,),
    ),
    Mutation(
        "decay is decoupled from the momentum",
        "moco.py",
        ((f"{_DECAY}, {_TRACE}", f"{_TRACE}, {_DECAY}"),),
        (_MOCO,),
    ),
    Mutation(
        "momentum is Nesterov's",
        "moco.py",
        ((_TRACE, "optax.trace(self.sgd_momentum, nesterov=True)"),),
        (_MOCO,),
    ),
    Mutation(
        "the cosine reaches 0 one step early",
        "training.py",
        (("max(steps - warmup, 1)", "max(steps - warmup - 1, 1)"),),
        (_MOCO,),
    ),
    Mutation(
        "the hue turns by .4",
        "augment/policies.py",
        (("hue: float = 0.1", "hue: float = 0.4"),),
        (_MOCO, "tests/test_augment_policies.py::test_moco_v2_has_the_papers_numbers"),
    ),
    Mutation(
        "jitter has one order",
        "augment/photometric.py",
        (
            (
                "amounts, places = draws[:4].astype(image.dtype), draws[4:]",
                "amounts, places = draws[:4].astype(image.dtype), jnp.arange(4.0)",
            ),
        ),
        (_MOCO,),
    ),
    Mutation(
        "grey is the mean of the channels",
        "augment/photometric.py",
        (("0.299, 0.587, 0.114", "1 / 3, 1 / 3, 1 / 3"),),
        (_MOCO,),
    ),
    Mutation(
        "the max-pool is padded as XLA's SAME",
        "models/resnet.py",
        (('"imagenet": Stem(7, 3, 2, ((1, 1), (1, 1)))', '"imagenet": Stem(7, 3, 2, "SAME")'),),
        (_MOCO,),
    ),
    Mutation(
        "the ratio of crops is uniform, not log-uniform",
        "augment/geometric.py",
        (
            ("np.sqrt(area * np.exp(-log_ratio))", "np.sqrt(area / (1 + log_ratio))"),
            ("np.sqrt(area * np.exp(log_ratio))", "np.sqrt(area * (1 + log_ratio))"),
        ),
        ("tests/test_augment_geometric.py::test_boxes_are_distributed_as_torchvisions[size1]",),
    ),
    Mutation(
        "the probe's rate drops one step late",
        "evaluate/linear_sgd.py",
        (("step >= round", "step > round"),),
        ("tests/test_evaluate_linear_sgd.py::test_the_rate_drops_where_the_authors_code_drops_it",),
    ),
    Mutation(
        "a loss of several labels is summed over classes",
        "evaluate/linear_sgd.py",
        (
            (
                "optax.sigmoid_binary_cross_entropy(logits, labels.T).mean((1, 2))",
                "optax.sigmoid_binary_cross_entropy(logits, labels.T).sum(1).mean(1)",
            ),
        ),
        (
            "tests/test_evaluate_linear_sgd.py::"
            "test_the_probe_is_plain_sgd_kept_at_its_best_step_of_the_second_half[True]",
        ),
    ),
    Mutation(
        "fine-tuning's head has the backbone's rate",
        "evaluate/finetune.py",
        (("rate * head_multiplier", "rate"),),
        ("tests/test_evaluate_evaluations.py::test_finetuning_is_sgd_with_a_faster_head",),
    ),
    Mutation(
        "HPT-BN trains scales without biases",
        "moco.py",
        (('k[-1] in ("scale", "bias")', 'k[-1] == "scale"'),),
        (_HPT_BN,),
    ),
    Mutation(
        "`statistics` keeps the last batch instead of the mean",
        "bn_statistics.py",
        (("share = 1 / (state.step + 1).astype(dtype)", "share = jnp.ones((), dtype)"),),
        (_STATISTICS,),
    ),
)


def table() -> str:
    """The mistakes in Markdown; a name in brackets is a kept trace."""
    rows = ["| mistake | in | seen by |", "|---|---|---|"]
    for one in MUTATIONS:
        tests = ", ".join(f"`{test.removeprefix(_KEPT)}`" for test in one.caught_by)
        rows.append(f"| {one.what} | `{one.file}` | {tests} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
