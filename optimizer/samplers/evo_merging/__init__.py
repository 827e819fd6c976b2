"""Evo-Merging: derivative-free search over the coefficients of a pool of LoRAs."""
