"""A short run on a lent machine with a GPU: small data, proved kernels, a queue of trainings by the clock."""
