"""A vLLM server that reads a folder; a recipe is a LoRA, merged here and loaded there."""
