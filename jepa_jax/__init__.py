"""I-JEPA in JAX and Flax: pretraining, checkpoints and probes."""
