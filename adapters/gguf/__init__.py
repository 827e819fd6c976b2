"""Checkpoints and PEFT LoRAs as files of llama.cpp's format GGUF. What its own converter is needed for is refused."""
