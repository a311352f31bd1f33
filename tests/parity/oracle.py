"""HPT's training in PyTorch, written from the papers and from torch.nn alone.

The independent side of every comparison: it imports nothing of hpt_jax and takes none of its
constants. It is the original's program of several processes, one a group of batch norm ("rank"),
run one after another. Where the original is known to differ from its paper, or hpt_jax chose to,
docs/fidelity.md says so.

Literature: He et al. 2015 (ResNet) and 2019 (MoCo), Chen et al. 2020 (MoCo-v2), Reed et al. 2021.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """MoCo-v2 as HPT trains it; `ranks` is its number of GPUs."""

    ranks: int = 4
    momentum: float = 0.999
    temperature: float = 0.2
    learning_rate: float = 0.03
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    bn_alone: bool = False  # HPT-BN


class Block(nn.Module):
    """A basic block, or a bottleneck with its stride on the 3x3."""

    def __init__(self, inner: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = width * 4 if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(inner, width, 3, stride, padding=1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.bottleneck, self.downsample = bottleneck, None
        if stride != 1 or inner != out:
            conv = nn.Conv2d(inner, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c', h', w']."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            x = self.bn3(self.conv3(F.relu(x)))
        return F.relu(x + shortcut)


class ResNet(nn.Module):
    """A ResNet with torchvision's names, up to the mean over the last map."""

    def __init__(
        self, arch: str, width: int = 64, stem: str = "imagenet", stem_stride: int = 2
    ) -> None:
        super().__init__()
        bottleneck = arch == "resnet50"
        small = stem == "small"
        kernel = 3 if small else 7
        self.conv1 = nn.Conv2d(3, width, kernel, stem_stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        inner = width
        for layer, count in enumerate(BLOCKS[arch]):
            blocks = []
            for index in range(count):
                stride = 2 if layer and not index else 1
                blocks.append(Block(inner, width * 2**layer, stride, bottleneck))
                inner = width * 2**layer * (4 if bottleneck else 1)
            setattr(self, f"layer{layer + 1}", nn.Sequential(*blocks))
        self.features = inner

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, features]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.mean((2, 3))


class Encoder(nn.Module):
    """Backbone and MoCo-v2's head; embeddings of unit length."""

    def __init__(self, backbone: ResNet, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        features = backbone.features
        self.head = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, dim]."""
        return F.normalize(self.head(self.backbone(x)), dim=1)


class Ranks:
    """One module on several ranks: the same parameters, batch-norm statistics of their own."""

    def __init__(self, module: nn.Module, count: int) -> None:
        self.module = module.train()
        self.buffers = [copy.deepcopy(dict(module.named_buffers())) for _ in range(count)]

    def __call__(self, x: Tensor) -> Tensor:
        """Each rank its equal share of the rows, in order."""
        params = dict(self.module.named_parameters())
        shares = zip(self.buffers, x.chunk(len(self.buffers)), strict=True)
        return torch.cat(
            [functional_call(self.module, {**params, **own}, rows) for own, rows in shares]
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """Parameters, and the mean over ranks of the running statistics."""
        found = {name: value.detach() for name, value in self.module.named_parameters()}
        for name in self.buffers[0]:
            if not name.endswith("num_batches_tracked"):
                found[name] = torch.stack([own[name] for own in self.buffers]).mean(0)
        return {name: value.numpy().copy() for name, value in found.items()}


class MoCo:
    """MoCo-v2's training, step by step."""

    def __init__(self, query: Encoder, queue: Tensor, recipe: Recipe, steps: int) -> None:
        self.recipe = recipe
        self.query = Ranks(query, recipe.ranks)
        self.key = Ranks(copy.deepcopy(query), recipe.ranks)
        self.queue, self.pointer = queue.clone(), 0
        if recipe.bn_alone:
            for module in query.backbone.modules():
                if isinstance(module, nn.Conv2d):
                    module.requires_grad_(False)
        trained = [param for param in query.parameters() if param.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained,
            recipe.learning_rate,
            momentum=recipe.sgd_momentum,
            weight_decay=recipe.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def step(
        self, query_views: Tensor, key_views: Tensor, permutation: np.ndarray
    ) -> dict[str, np.ndarray]:
        """One step.

        Args:
          query_views: [n, 3, h, w], normalised.
          key_views: [n, 3, h, w], in the same order.
          permutation: int[n], key j of the shuffled batch is the view of example permutation[j].

        Returns:
          'loss', 'logits' [n, 1 + queue] and 'learning_rate' of the step, and 'pointer', 'queue',
          'query/...' and 'key/...' after it.
        """
        recipe = self.recipe
        queries = self.query(query_views)
        with torch.no_grad():
            pairs = zip(self.key.module.parameters(), self.query.module.parameters(), strict=True)
            for key, query in pairs:
                key.mul_(recipe.momentum).add_(query, alpha=1 - recipe.momentum)
            shuffled = self.key(key_views[permutation])
            keys = torch.empty_like(shuffled)
            keys[permutation] = shuffled
        positive = torch.einsum("nc,nc->n", queries, keys)[:, None]
        negative = torch.einsum("nc,kc->nk", queries, self.queue.clone())
        logits = torch.cat([positive, negative], 1) / recipe.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        self._enqueue(keys)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return {
            "loss": loss.detach().numpy(),
            "logits": logits.detach().numpy(),
            "learning_rate": np.asarray(rate),
            "pointer": np.asarray(self.pointer),
            "queue": self.queue.numpy().copy(),
            **{f"query/{name}": value for name, value in self.query.tensors().items()},
            **{f"key/{name}": value for name, value in self.key.tensors().items()},
        }

    def _enqueue(self, keys: Tensor) -> None:
        for key in keys:
            self.queue[self.pointer] = key
            self.pointer = (self.pointer + 1) % len(self.queue)


def statistics(
    backbone: ResNet, batches: Iterable[Tensor], ranks: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batch norm re-estimated in one pass: torch's cumulative average, mean over ranks.

    Yields all tensors after each batch, [n, 3, h, w].
    """
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    everywhere = Ranks(backbone, ranks)
    for views in batches:
        with torch.no_grad():
            everywhere(views)
        yield everywhere.tensors()


def view(crop: np.ndarray, draws: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """MoCo-v2's augmentation after the crop, in double precision, and the normalisation.

    Colour is torchvision's `ColorJitter(.4, .4, .4, .1)` with probability .8 and its grayscale with
    .2, on Pillow's luma; the blur a true Gaussian, sigma .1 to 2, with probability .5; flips .5.

    Args:
      crop: u8[h, w, 3].
      draws: 13 uniform numbers: amounts of brightness, contrast, saturation, hue; their places in
        the order; whether to jitter, drop colours and blur; sigma; whether to flip.
      mean: [3], of pixels in [0, 1].
      std: [3].

    Returns:
      [3, h, w].
    """
    image = torch.from_numpy(crop).double().permute(2, 0, 1) / 255
    u = draws.astype(np.float64)
    if u[8] < 0.8:
        strengths = (0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)
        amounts = [low + (high - low) * one for (low, high), one in zip(strengths, u, strict=False)]
        for which in np.argsort(u[4:8]):
            image = (_brightness, _contrast, _saturation, _hue)[which](image, amounts[which])
    if u[9] < 0.2:
        image = _luma(image).expand(3, -1, -1)
    if u[10] < 0.5:
        image = _blur(image, 0.1 + 1.9 * u[11])
    if u[12] < 0.5:
        image = image.flip(-1)
    mean, std = (torch.from_numpy(one).double()[:, None, None] for one in (mean, std))
    return (image - mean) / std


def _luma(image: Tensor) -> Tensor:
    red, green, blue = image
    return (0.299 * red + 0.587 * green + 0.114 * blue)[None]


def _brightness(image: Tensor, factor: float) -> Tensor:
    return (factor * image).clamp(0, 1)


def _contrast(image: Tensor, factor: float) -> Tensor:
    return (factor * image + (1 - factor) * _luma(image).mean()).clamp(0, 1)


def _saturation(image: Tensor, factor: float) -> Tensor:
    return (factor * image + (1 - factor) * _luma(image)).clamp(0, 1)


def _hue(image: Tensor, turn: float) -> Tensor:
    """To hue, saturation and value (Smith 1978), around the circle, and back."""
    red, green, blue = image
    value, low = image.max(0).values, image.min(0).values
    chroma = value - low
    some = chroma > 0
    safe = torch.where(some, chroma, 1)
    hue = torch.where(
        value == red,
        (green - blue) / safe % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = (torch.where(some, hue, 0) / 6 + turn) % 1
    saturation = torch.where(value > 0, chroma / torch.where(value > 0, value, 1), 0)
    sector = (hue * 6).floor()
    fraction = hue * 6 - sector
    p = value * (1 - saturation)
    q = value * (1 - saturation * fraction)
    t = value * (1 - saturation * (1 - fraction))
    channels = ((value, q, p, p, t, value), (t, value, value, q, p, p), (p, p, t, value, value, q))
    index = (sector.long() % 6)[None]
    return torch.stack([torch.stack(one).gather(0, index)[0] for one in channels])


def _blur(image: Tensor, sigma: float, radius: int = 16) -> Tensor:
    taps = torch.exp(-(torch.arange(-radius, radius + 1).double() ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum())[None, None]
    padded = F.pad(image[None], (radius,) * 4, mode="reflect")[0][:, None]
    return F.conv2d(F.conv2d(padded, taps[:, :, :, None]), taps[:, :, None])[:, 0]
