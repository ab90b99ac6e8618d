"""A whole RSCFL block as one kernel."""
