"""Tasks that ask what a model makes of whole texts, without generating: their classes, their vectors."""
