"""Checkpoints of other libraries: the reference, Hugging Face, timm."""
