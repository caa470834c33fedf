"""Content-addressed artifacts and remembered results."""
