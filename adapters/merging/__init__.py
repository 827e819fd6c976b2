"""The merge engine: from a recipe and checkpoints to tensors. Asks no model, knows no task."""
