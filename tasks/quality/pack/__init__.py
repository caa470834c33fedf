"""The embedded task pack: lm-eval tasks generated with a seed, offline, the same for every tokenizer."""
