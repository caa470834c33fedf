"""Stage 4: LoRA and QLoRA."""
