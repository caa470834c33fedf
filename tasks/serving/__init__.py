"""Requests, latency and throughput measurement."""
