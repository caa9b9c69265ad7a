"""The survey description: one YAML file that says where the files are and what their columns mean."""
