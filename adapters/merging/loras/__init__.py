"""LoRAs merged by their factors, without the matrices that they stand for."""
