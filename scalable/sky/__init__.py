"""The sky as pixels: plain geometry, no data, no scheduling."""
