"""Adapters: one format or storage layout a file, no scheduling."""
