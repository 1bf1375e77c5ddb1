"""Optimisation: schedules, optimizer, moving average, the jitted step, checkpoints, the loop."""
