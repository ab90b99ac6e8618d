"""The 2-D selective scan: one function, one module for each back end."""
