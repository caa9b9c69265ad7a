"""Benchmarks: workloads that an astronomer knows, measured with their answers checked first."""
