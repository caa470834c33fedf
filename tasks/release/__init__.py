"""Candidates, stage results and the decisions on them."""
