"""Compiled kernels beside their references; without a compiler the references do the work."""
