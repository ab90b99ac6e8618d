"""Training components that MONAI lacks."""
