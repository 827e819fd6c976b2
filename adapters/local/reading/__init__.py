"""What a live model makes of whole texts: classes and vectors."""
