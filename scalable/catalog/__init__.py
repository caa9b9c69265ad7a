"""Lazy verbs over partitioned catalogues; each only wires a kernel to partitions."""
