"""Encoders: ResNets whose tensors map one to one onto torchvision's, and the projection head."""
