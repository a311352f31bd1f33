"""Backbones in and out: strict loading, and export under the names that timm uses."""
