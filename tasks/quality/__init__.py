"""Scoring, per-sample records, statistics and the gate."""
