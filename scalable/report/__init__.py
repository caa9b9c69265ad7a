"""What a person looks at: plots and one HTML page per run."""
