"""The claim on the decoder engine; see `run`."""
