"""What training needs besides MONAI."""
