"""MoCo-v2 in PyTorch as one would write it for speed on one CPU: channels last, nothing extra.

The networks are those that the tests compare with (`tests/parity/oracle.py`); the training around
them is that of the original, of one batch-norm group, and so without shuffling.
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
    """

    def __init__(
        self,
        query: Encoder,
        queue_size: int,
        dim: int,
        learning_rate: float,
        key_momentum: float = 0.999,
    ) -> None:
        self.query = query.to(memory_format=torch.channels_last).train()
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.queue = F.normalize(torch.randn(queue_size, dim), dim=1)
        self.pointer, self.key_momentum = 0, key_momentum
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4
        )

    def step(self, query_views: Tensor, key_views: Tensor) -> float:
        """One step on normalised views [n, 3, h, w], channels last; returns the loss."""
        with torch.no_grad():
            query, key = list(self.query.parameters()), list(self.key.parameters())
            torch._foreach_lerp_(key, query, 1 - self.key_momentum)
            keys = self.key(key_views)
        queries = self.query(query_views)
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
