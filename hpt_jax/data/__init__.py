"""Datasets by name, the order in which steps read them, and their pixels held in memory."""

# What a dataset's name may begin with, before a colon.
SCHEMES = ("folder", "package", "tfds")
