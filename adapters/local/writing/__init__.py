"""What a live model writes: the state of an answer, a batch of them, and transformers' own loop."""
