"""Stage 3: batching and scheduling."""
