"""Benchmarks at survey scale: many minutes, gigabytes of disk; run by name."""
