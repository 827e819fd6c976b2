"""Models by their names on the Hugging Face Hub: which commit a name means, and the folder its files lie in.

Only safetensors, configurations and files of tokenizers and processors are fetched; never pickles, never code.
"""
