"""NIfTI volumes: check, read in pieces, write."""
