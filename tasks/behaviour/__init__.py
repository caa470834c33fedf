"""Behaviour beyond accuracy: what both models answer, and rules that look at each answer."""
