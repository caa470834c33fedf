"""Model sources to local checkpoints."""
