"""An endpoint with served models; a recipe chooses one of them."""
