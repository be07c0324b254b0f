"""Numerical kernels: a torch reference for each, and the fast one beside it."""
