"""llama.cpp's server with LoRAs loaded; a recipe is the LoRAs' scales in each request."""
