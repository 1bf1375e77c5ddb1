"""What a batch holds, as an objective declares it. NumPy alone: no TensorFlow, no JAX arrays."""
