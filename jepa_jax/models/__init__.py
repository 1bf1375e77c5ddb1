"""Linen modules: the vision transformer that encodes, and the predictor."""
