"""MoCo-v2 as pure functions: settings, state, views, train step.

He et al., "Momentum Contrast" (2019) and Chen et al., "Improved Baselines" (2020). `train_step` is
the program of one device, mapped over devices by `parallel.py`. Another self-supervised method is
one more file with the same functions, and one line in `training.METHODS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax import lax
from jax.typing import ArrayLike

from hpt_jax import config as config_lib
from hpt_jax.augment import geometric, photometric, policies, views
from hpt_jax.data import order
from hpt_jax.data.loader import Crops
from hpt_jax.models.backbone import Backbone
from hpt_jax.models.heads import ProjectionHead
from hpt_jax.models.resnet import ResNet
from hpt_jax.parallel import AXIS

# Which view of an example an image is; part of the key of its augmentation.
QUERY, KEY = 0, 1
# Streams of a step's random numbers on the host.
_QUERY_CROP, _KEY_CROP, _SHUFFLE = 1, 2, 3
METRICS = (
    "loss",
    "accuracy",
    "positive_similarity",
    "negative_similarity",
    "gradient_norm",
    "embedding_std",
    "queue_fill",
    "own_keys",
    "queue_gap",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the compiled step depends on; equal settings share one program.

    Attributes:
      model: the backbone.
      image_size: side of a view, in pixels.
      policy: the augmentation of a view.
      batch_size: global batch, in examples.
      shuffle_block: keys are shuffled within consecutive blocks of this many slots.
      queue_size: number of negatives.
      dim: size of the embedding.
      momentum: of the key encoder.
      temperature: of the logits.
      mask_own_keys: whether an image's own old keys are left out of its negatives.
      trainable: 'all' or 'batch_norm' (HPT-BN: BN scale and bias, and the head).
      weight_decay: coupled L2, on every trained parameter.
      sgd_momentum: of SGD.
    """

    model: ResNet
    image_size: int
    policy: policies.Policy
    batch_size: int
    shuffle_block: int
    queue_size: int
    dim: int
    momentum: float
    temperature: float
    mask_own_keys: bool
    trainable: str
    weight_decay: float
    sgd_momentum: float

    @property
    def head(self) -> ProjectionHead:
        """The projection head."""
        return ProjectionHead(self.dim, self.model.dtype)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """SGD as torch has it, without the rate: decay joins the gradient before the momentum."""
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay), optax.trace(self.sgd_momentum)
        )


@struct.dataclass
class State:
    """Everything that training carries from step to step.

    Attributes:
      step: i32, steps taken.
      rng: key of the stage; never changes.
      backbone: the query encoder's backbone, which the stage hands over.
      head: the query encoder's projection head.
      key_params: {'backbone', 'head'} of the key encoder.
      key_batch_stats: its running statistics; kept, never read, never handed over.
      opt_state: SGD's momentum, of the trained parameters alone.
      queue: [queue_size, dim] normalised keys; unfilled slots are random unit vectors.
      queue_images: i32[queue_size], the image of each key, -1 in unfilled slots.
      queue_pointer: i32, where the next key goes.
      queue_fill: i32, how many slots hold real keys.
    """

    step: jax.Array
    rng: jax.Array
    backbone: Backbone
    head: Any
    key_params: Any
    key_batch_stats: Any
    opt_state: Any
    queue: jax.Array
    queue_images: jax.Array
    queue_pointer: jax.Array
    queue_fill: jax.Array


def make_settings(stage: config_lib.Stage, model: ResNet, channels: int) -> Settings:
    """The settings of a stage whose images have `channels` channels."""
    policy, _ = policies.for_channels(stage.augment, channels)
    return Settings(
        model=model,
        image_size=stage.image_size,
        policy=policy,
        batch_size=stage.batch_size,
        shuffle_block=stage.moco.shuffle_block or stage.batch_size,
        queue_size=stage.moco.queue_size,
        dim=stage.moco.dim,
        momentum=stage.moco.momentum,
        temperature=stage.moco.temperature,
        mask_own_keys=stage.moco.mask_own_keys,
        trainable=stage.trainable,
        weight_decay=stage.optimizer.weight_decay,
        sgd_momentum=stage.optimizer.momentum,
    )


def init(settings: Settings, rng: jax.Array, backbone: Backbone) -> State:
    """A fresh state around a backbone: new head, queue and optimiser; the key copies the query."""
    head_rng, queue_rng, state_rng = jax.random.split(rng, 3)
    features = jnp.zeros((1, settings.model.features), settings.model.dtype)
    head = settings.head.init(head_rng, features)["params"]
    dtype = jnp.promote_types(jnp.float32, settings.model.dtype)
    queue = jax.random.normal(queue_rng, (settings.queue_size, settings.dim), dtype)
    params = {"backbone": backbone.params, "head": head}
    trained, _ = split_trainable(params, settings.trainable)
    copy = jax.tree.map(jnp.copy, (params, backbone.batch_stats))  # donated with the state
    return State(
        step=jnp.zeros((), jnp.int32),
        rng=state_rng,
        backbone=backbone,
        head=head,
        key_params=copy[0],
        key_batch_stats=copy[1],
        opt_state=settings.optimizer.init(trained),
        queue=normalized(queue),
        queue_images=jnp.full(settings.queue_size, -1, jnp.int32),
        queue_pointer=jnp.zeros((), jnp.int32),
        queue_fill=jnp.zeros((), jnp.int32),
    )


def plan_batch(
    settings: Settings, seed: int, step: int, rows: np.ndarray, sizes: np.ndarray
) -> dict[str, Crops | np.ndarray]:
    """What the batch of a step shows: two random crops of each example.

    Row j of 'key' shows the example of slot perm[j], so that a key is normalised among other
    examples than its query, and no image ever travels between devices. A view's randomness goes by
    the slot of its example, so that shuffling changes no view.

    Args:
      settings: static.
      seed: of the stage.
      step: from 0.
      rows: int64[batch_size], the image of each slot.
      sizes: i32[batch_size, 2], its (height, width).

    Returns:
      'query' and 'key'; 'images' i32[batch_size], the image of each query; and 'key_slots'
      i32[batch_size], the slot whose example each key shows.
    """

    def boxes(stream: int) -> np.ndarray:
        draws = order.uniforms(seed, step, stream, (len(rows), geometric.BOX_DRAWS))
        policy = settings.policy
        return geometric.random_resized_crop_boxes(
            draws, sizes, policy.crop_scale, policy.crop_ratio
        )

    slots = order.shuffle(seed, step, _SHUFFLE, len(rows), settings.shuffle_block)
    return {
        "query": Crops(rows, boxes(_QUERY_CROP)),
        "key": Crops(rows[slots], boxes(_KEY_CROP)[slots]),
        "images": rows.astype(np.int32),
        "key_slots": slots.astype(np.int32),
    }


def train_step(
    settings: Settings, state: State, batch: dict[str, jax.Array], learning_rate: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of one device; runs under the mapped axis `AXIS`.

    Args:
      settings: static.
      state: the same on all devices.
      batch: this device's rows of what `plan_batch` plans: 'query' and 'key' views, cropped,
        u8[rows, size, size, channels] (colour, blur and flip happen here), 'images', 'key_slots'.
      learning_rate: of this step.

    Returns:
      The next state, and scalar metrics averaged over devices.
    """
    rows = batch["query"].shape[0]
    first = lax.axis_index(AXIS) * rows
    batch = {**batch, "query_slots": first + jnp.arange(rows)}

    params = {"backbone": state.backbone.params, "head": state.head}
    key_params = momentum_update(state.key_params, params, settings.momentum)
    keys, key_batch_stats = _keys(settings, state, key_params, batch)
    gathered = lax.all_gather((keys, batch["key_slots"], batch["images"]), AXIS, tiled=True)
    keys, images = unshuffle(*gathered[:2]), gathered[2]
    positives = lax.dynamic_slice_in_dim(keys, first, rows)

    trained, frozen = split_trainable(params, settings.trainable)
    queries, (grads, batch_stats) = _queries(settings, state, trained, frozen, batch, positives)
    own = batch["images"][:, None] == state.queue_images
    masked = own if settings.mask_own_keys else None
    _, metrics = info_nce(queries, positives, state.queue, settings.temperature, masked)
    others = batch["images"][:, None] != images
    metrics |= _of_the_queue(settings, state, queries, keys, own, others)
    moments = queries.mean(0), jnp.square(queries).mean(0)
    grads, metrics, moments, batch_stats, key_batch_stats = lax.pmean(
        (grads, metrics, moments, batch_stats, key_batch_stats), AXIS
    )
    metrics |= {"embedding_std": _spread(*moments), "gradient_norm": optax.tree.norm(grads)}
    updates, opt_state = settings.optimizer.update(grads, state.opt_state, trained)
    trained = jax.tree.map(lambda p, u: p - learning_rate.astype(p.dtype) * u, trained, updates)
    params = traverse_util.unflatten_dict({**trained, **frozen})
    (queue, queue_images), pointer, fill = enqueue(
        (state.queue, state.queue_images), state.queue_pointer, state.queue_fill, (keys, images)
    )
    backbone = dataclasses.replace(
        state.backbone, params=params["backbone"], batch_stats=batch_stats
    )
    next_state = dataclasses.replace(
        state,
        step=state.step + 1,
        backbone=backbone,
        head=params["head"],
        key_params=key_params,
        key_batch_stats=key_batch_stats,
        opt_state=opt_state,
        queue=queue,
        queue_images=queue_images,
        queue_pointer=pointer,
        queue_fill=fill,
    )
    return next_state, metrics


@jax.named_scope("keys")
def _keys(
    settings: Settings, state: State, params: Any, batch: dict[str, jax.Array]
) -> tuple[jax.Array, Any]:
    """The keys [rows, dim] of a device's part of a batch, and the updated running statistics."""

    def seen(views: jax.Array, slots: jax.Array) -> tuple[jax.Array, Any]:
        views = _prepare(settings, state, views, slots, KEY)
        return _features(settings, params["backbone"], state.key_batch_stats, views)

    rows = batch["key"], batch["key_slots"]
    features, batch_stats = _in_turn(settings, seen, rows, state.key_batch_stats)
    # The head has no batch norm, and its weights are read once for all groups.
    return _embedded(settings, params["head"], features), batch_stats


@jax.named_scope("queries")
def _queries(
    settings: Settings,
    state: State,
    trained: dict[Any, Any],
    frozen: dict[Any, Any],
    batch: dict[str, jax.Array],
    positives: jax.Array,
) -> tuple[jax.Array, tuple[dict[Any, Any], Any]]:
    """The queries [rows, dim] of a device's part of a batch, and what they teach.

    Args:
      settings: static.
      state: before the step.
      trained: flat dict of the parameters that train.
      frozen: of the others.
      batch: as of `train_step`, with 'query_slots'.
      positives: [rows, dim], the key of each query.

    Returns:
      The queries; the gradient of the mean loss, and the updated running statistics.
    """

    def taught(
        views: jax.Array, slots: jax.Array, images: jax.Array, positives: jax.Array
    ) -> tuple[jax.Array, tuple[dict[Any, Any], Any]]:
        views = _prepare(settings, state, views, slots, QUERY)
        own = images[:, None] == state.queue_images if settings.mask_own_keys else None

        def loss_fn(trained: dict[Any, Any]) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            params = traverse_util.unflatten_dict({**trained, **frozen})
            features, batch_stats = _features(
                settings, params["backbone"], state.backbone.batch_stats, views
            )
            queries = _embedded(settings, params["head"], features)
            loss, _ = info_nce(queries, positives, state.queue, settings.temperature, own)
            return loss, (queries, batch_stats)

        grads, (queries, batch_stats) = jax.grad(loss_fn, has_aux=True)(trained)
        return queries, (grads, batch_stats)

    rows = batch["query"], batch["query_slots"], batch["images"], positives
    return _in_turn(settings, taught, rows, (trained, state.backbone.batch_stats))


def _in_turn(settings: Settings, fn: Callable[..., Any], rows: tuple[Any, ...], like: Any) -> Any:
    """`fn` of a device's rows, of one batch-norm group after another where the layout says so.

    Args:
      settings: static.
      fn: of some rows; returns some for each of them, and numbers to be averaged over groups.
      rows: what it is given, each [rows, ...].
      like: arrays of the shapes and dtypes of those numbers.

    Returns:
      What `fn` does, of all rows.
    """
    turns = settings.model.layout.turns
    if turns == 1:
        return fn(*rows)

    def turn(total: Any, part: tuple[Any, ...]) -> tuple[Any, Any]:
        made, numbers = fn(*part)
        return jax.tree.map(lambda x, y: x + y / turns, total, numbers), made

    parts = jax.tree.map(lambda x: x.reshape(turns, -1, *x.shape[1:]), rows)
    mean, made = lax.scan(turn, jax.tree.map(jnp.zeros_like, like), parts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made), mean


@jax.named_scope("contrast")
def _of_the_queue(
    settings: Settings,
    state: State,
    queries: jax.Array,
    keys: jax.Array,
    own: jax.Array,
    others: jax.Array,
) -> dict[str, jax.Array]:
    """Metrics of the queue before a step: 'queue_fill', 'own_keys' and 'queue_gap'.

    Args:
      settings: static.
      state: before the step.
      queries: [rows, dim], of this device.
      keys: [batch_size, dim], of all devices.
      own: bool[rows, queue_size], which keys of the queue are of the query's own image.
      others: bool[rows, batch_size], which of `keys` are not.
    """
    temperature, filled = settings.temperature, state.queue_images >= 0
    fresh = hardness(queries, keys, temperature, others)
    old = hardness(queries, state.queue, temperature, filled & ~own)
    return {
        "queue_fill": (state.queue_fill / settings.queue_size).astype(queries.dtype),
        "own_keys": own.sum(1).mean(dtype=queries.dtype),
        "queue_gap": queue_gap(fresh, old),
    }


def _spread(mean: jax.Array, mean_square: jax.Array) -> jax.Array:
    """The standard deviation of unit vectors by their moments [dim]: 1 on the whole sphere."""
    deviations = jnp.sqrt((mean_square - jnp.square(mean)).clip(0))
    return deviations.mean() * jnp.sqrt(float(len(mean))).astype(mean.dtype)


def distorted(
    settings: Settings,
    rng: jax.Array,
    step: ArrayLike,
    image: jax.Array,
    slot: ArrayLike,
    view: ArrayLike,
) -> jax.Array:
    """A cropped image as a step sees it, but for the normalisation.

    Args:
      settings: static.
      rng: `State.rng`.
      step: from 0, may be traced, as may be what follows.
      image: u8[size, size, channels], a crop.
      slot: the example's place in the global batch.
      view: `QUERY` or `KEY`.

    Returns:
      [size, size, channels] in [0, 1], of the arithmetic's dtype.
    """
    dtype = jnp.promote_types(jnp.float32, settings.model.dtype)
    draws = views.view_draws(rng, step, slot, view)
    return views.distort(draws, image, settings.policy, dtype)


@jax.named_scope("contrast")
def info_nce(
    queries: jax.Array,
    positives: jax.Array,
    queue: jax.Array,
    temperature: float,
    own: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """InfoNCE (MoCo equation 1), mean over queries; all vectors are normalised.

    Args:
      queries: [n, dim].
      positives: [n, dim], the key of each query.
      queue: [queue_size, dim], the negatives.
      temperature: divides the similarities.
      own: bool[n, queue_size], the negatives of each query that are left out; None: none.

    Returns:
      The loss, and metrics: 'loss', 'accuracy' (the positive beats every negative),
      'positive_similarity' and 'negative_similarity' (mean cosines).
    """
    scores = logits(queries, positives, queue, temperature)
    positive, negative = scores[:, 0], scores[:, 1:]
    similarity = negative.mean()
    if own is not None:
        similarity = jnp.where(own, 0, negative).sum() / (~own).sum().clip(1)
        negative = jnp.where(own, -jnp.inf, negative)
        scores = jnp.concatenate([positive[:, None], negative], 1)
    loss = jnp.mean(jax.nn.logsumexp(scores, 1) - positive)
    metrics = {
        "loss": loss,
        "accuracy": jnp.mean(positive > negative.max(1), dtype=positive.dtype),
        "positive_similarity": temperature * positive.mean(),
        "negative_similarity": temperature * similarity,
    }
    return loss, lax.stop_gradient(metrics)


def logits(
    queries: jax.Array, positives: jax.Array, queue: jax.Array, temperature: float
) -> jax.Array:
    """Similarities over the temperature, [n, 1 + queue_size], the positive's first."""
    positive = jnp.sum(queries * positives, -1, keepdims=True)
    return jnp.concatenate([positive, queries @ queue.T], 1) / temperature


def hardness(
    queries: jax.Array, keys: jax.Array, temperature: float, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How hard some negatives are: log of the mean of exp(similarity / temperature), in nats.

    Args:
      queries: [n, dim], normalised.
      keys: [m, dim], normalised.
      temperature: divides the similarities.
      counted: bool[n, m], the negatives of each query.

    Returns:
      [n], and bool[n], whether a query has any; where it has none, the number means nothing.
    """
    scores = jnp.where(counted, queries @ keys.T / temperature, -jnp.inf)
    return jax.nn.logsumexp(scores, 1) - jnp.log(counted.sum(1)), counted.any(1)


def queue_gap(fresh: tuple[jax.Array, jax.Array], queue: tuple[jax.Array, jax.Array]) -> jax.Array:
    """How much harder fresh negatives are than those of the queue; the mean over queries, in nats.

    About 0 in a healthy run. Above: the queue's keys come from an encoder that is long gone, or
    keys of one batch bear its mark, as where batch norm's statistics leak.

    Args:
      fresh: `hardness` of the batch's other images.
      queue: `hardness` of the queue.
    """
    both = fresh[1] & queue[1]
    return jnp.where(both, fresh[0] - queue[0], 0).sum() / both.sum().clip(1)


def momentum_update(key_params: Any, query_params: Any, momentum: float) -> Any:
    """MoCo equation 2, in the form that leaves equal weights bit-identical."""
    return jax.tree.map(lambda k, q: k + (1 - momentum) * (q - k), key_params, query_params)


def unshuffle(keys: jax.Array, slots: jax.Array) -> jax.Array:
    """Rows back in the order of slots: out[slots[j]] = keys[j]."""
    return jnp.zeros_like(keys).at[slots].set(keys)


def enqueue(
    queue: Any, pointer: jax.Array, fill: jax.Array, new: Any
) -> tuple[Any, jax.Array, jax.Array]:
    """Writes new rows, in order, over the oldest of the ring.

    Args:
      queue: an array, or a tree of arrays, [queue_size, ...].
      pointer: i32, where the next row goes.
      fill: i32, how many rows were written, at most queue_size.
      new: the same tree of [n, ...], n <= queue_size.
    """
    size, count = (jax.tree.leaves(tree)[0].shape[0] for tree in (queue, new))
    positions = (pointer + jnp.arange(count)) % size
    queue = jax.tree.map(lambda ring, rows: ring.at[positions].set(rows), queue, new)
    return queue, (pointer + count) % size, jnp.minimum(fill + count, size)


def split_trainable(params: Any, trainable: str) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Cuts {'backbone', 'head'} into flat dicts of trained and of frozen parameters.

    With 'batch_norm' (HPT-BN, paper section 3) only batch norm's scale and bias and the head train.
    """
    flat = traverse_util.flatten_dict(params)
    if trainable == "all":
        return flat, {}
    trained = {k: v for k, v in flat.items() if k[0] == "head" or k[-1] in ("scale", "bias")}
    return trained, {k: v for k, v in flat.items() if k not in trained}


def normalized(x: jax.Array) -> jax.Array:
    """Rows of unit length."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12)


@jax.named_scope("augmentation")
def _prepare(
    settings: Settings, state: State, images: jax.Array, slots: jax.Array, view: int
) -> jax.Array:
    """Distorts and normalises cropped views, each by the key of its example."""

    def one(image: jax.Array, slot: jax.Array) -> jax.Array:
        image = distorted(settings, state.rng, state.step, image, slot, view)
        return photometric.normalize(image, state.backbone.pixel_mean, state.backbone.pixel_std)

    return jax.vmap(one)(images, slots)


def _features(
    settings: Settings, params: Any, batch_stats: Any, images: jax.Array
) -> tuple[jax.Array, Any]:
    """Features of normalised images in training mode, and the updated running statistics."""
    model = settings.model.clone(layout=settings.model.layout.of_a_turn)
    features, updates = model.apply(
        {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
    )
    return features, updates["batch_stats"]


def _embedded(settings: Settings, params: Any, features: jax.Array) -> jax.Array:
    """Unit embeddings of features, at least float32."""
    embeddings: Any = settings.head.apply({"params": params}, features)
    return normalized(embeddings.astype(jnp.promote_types(jnp.float32, embeddings.dtype)))
