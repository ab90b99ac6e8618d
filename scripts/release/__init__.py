"""Release tools: the checks of the model zoo, and exported models."""
