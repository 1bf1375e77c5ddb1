"""What a run needs, before there is any device to run it."""
