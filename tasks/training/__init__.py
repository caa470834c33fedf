"""What adaptation and distillation share."""
