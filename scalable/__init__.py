"""Distributed dataframe batch processing for large sky surveys."""
