"""What helps to write a study file: its JSON schema, and a first one made from models."""
