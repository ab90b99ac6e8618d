"""NIfTI volumes: checked, read piece by piece, and written."""
