"""Judge frozen features: probes, neighbours and metrics."""
