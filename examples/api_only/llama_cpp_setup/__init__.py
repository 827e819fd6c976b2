"""PEFT LoRAs and base models as GGUF files, and llama.cpp's server on this machine."""
