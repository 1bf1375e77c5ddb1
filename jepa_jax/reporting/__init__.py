"""What a run and its features look like: pictures, charts, and one page with all of it."""
