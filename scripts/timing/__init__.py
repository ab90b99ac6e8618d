"""What `benchmark.py` measures: the machine, the kernels, networks and volumes."""
