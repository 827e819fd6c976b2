"""Six skills of SmolLM2-135M as LoRAs of its last ten layers, and merges of them that are scored in two seconds."""
