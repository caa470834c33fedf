"""Stage 5: a smaller student."""
