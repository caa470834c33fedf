"""Text and its disjoint splits."""
