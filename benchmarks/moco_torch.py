"""MoCo-v2 in PyTorch as one would write it for speed on one CPU: channels last, nothing extra.

The networks are those that the tests compare with (`tests/parity/oracle.py`); the training around
them is that of the original. Its batch-norm groups, GPUs there, go through an encoder one after
another, the keys shuffled; one group, which is no shuffling, is fastest.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.parity.oracle import Encoder

TEMPERATURE = 0.2


class Training:
    """What goes from step to step.

    Args:
      query: the query encoder.
      queue_size: number of negatives.
      dim: of the embeddings.
      learning_rate: of SGD with momentum 0.9 and weight decay 1e-4.
      key_momentum: of the key encoder.
      groups: of batch norm.
    """

    def __init__(
        self,
        query: Encoder,
        queue_size: int,
        dim: int,
        learning_rate: float,
        key_momentum: float = 0.999,
        groups: int = 1,
    ) -> None:
        self.query = query.to(memory_format=torch.channels_last).train()
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.queue = F.normalize(torch.randn(queue_size, dim), dim=1)
        self.pointer, self.key_momentum, self.groups = 0, key_momentum, groups
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4
        )

    def step(self, query_views: Tensor, key_views: Tensor) -> float:
        """One step on normalised views [n, 3, h, w], channels last; returns the loss."""
        with torch.no_grad():
            query, key = list(self.query.parameters()), list(self.key.parameters())
            torch._foreach_lerp_(key, query, 1 - self.key_momentum)
            keys = self._keys(key_views)
        queries = self._encoded(self.query, query_views)
        positive = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ self.queue.T], 1) / TEMPERATURE
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        places = torch.arange(self.pointer, self.pointer + len(keys)) % len(self.queue)
        self.queue[places] = keys
        self.pointer = (self.pointer + len(keys)) % len(self.queue)
        return loss.item()

    def _keys(self, views: Tensor) -> Tensor:
        if self.groups == 1:
            return self._encoded(self.key, views)
        permutation = torch.randperm(len(views))
        shuffled = self._encoded(self.key, views[permutation])
        keys = torch.empty_like(shuffled)
        keys[permutation] = shuffled
        return keys

    def _encoded(self, encoder: Encoder, views: Tensor) -> Tensor:
        return torch.cat([encoder(part) for part in views.chunk(self.groups)])
