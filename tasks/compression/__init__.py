"""Exports and weight compression, shared by the stages."""
