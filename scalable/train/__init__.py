"""Models trained out of core: exact where that is possible, in passes over batches that fit memory."""
