"""What only a release needs: the gate of the model zoo, and exported models."""
