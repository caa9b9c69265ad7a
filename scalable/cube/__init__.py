"""Image cubes: found by footprint, stacked lazily, written in shards; one contract for all."""
