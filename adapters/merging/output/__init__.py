"""Writing a merge: a mergekit configuration and checkpoints become a folder that transformers loads."""
