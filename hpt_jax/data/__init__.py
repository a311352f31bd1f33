"""Datasets by name, the order in which steps read them, and their pixels held in memory."""
