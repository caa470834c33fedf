"""An OpenAI-compatible endpoint over an engine's own continuous batching."""
