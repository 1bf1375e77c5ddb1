"""Checkpoints of other libraries: the published PyTorch code, Hugging Face, timm."""
