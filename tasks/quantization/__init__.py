"""Stage 2: weights and KV cache."""
