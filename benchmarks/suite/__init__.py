"""Small and steady benchmarks, minutes at most."""
