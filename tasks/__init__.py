"""The stages and the domain they share."""
