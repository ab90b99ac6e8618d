"""The patch search of the hard attention: one function, one module for each back end."""
