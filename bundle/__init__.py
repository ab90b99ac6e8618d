"""ICONet SR: slice-wise super-resolution of MR and PET volumes as a MONAI bundle."""
