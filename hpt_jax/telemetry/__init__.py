"""What a run tells while it runs: metrics.csv, TensorBoard, progress."""
