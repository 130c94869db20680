"""How this installation was built; written by CMake."""

MISSING = ""
"""What was missing for the compiled kernels; empty when they were built."""

COMPILER = "GNU 12.2.0"
"""What compiled them."""
