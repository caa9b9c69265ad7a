"""A sky from a seed, with its truth: for tests, the demo and benchmarks."""
