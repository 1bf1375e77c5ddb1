"""Training objectives: what is computed from a batch and minimised."""
