"""Stage 1: what the source model costs."""
