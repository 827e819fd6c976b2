"""Local weights: a merge lies in a live Hugging Face model, which is asked in this process."""
