"""Image augmentation: pure, jitted, one example at a time, keyed per example."""
