"""Hierarchical self-supervised pretraining with MoCo-v2 in JAX and Flax."""

__version__ = "0.1.0"
