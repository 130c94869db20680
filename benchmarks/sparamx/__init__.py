"""The claim on sparse kernels; see `run`."""
