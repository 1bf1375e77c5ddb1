"""What frozen features are worth: extraction, k-NN and linear probes, pictures."""
