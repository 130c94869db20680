"""The claim on bits that fall while a text is written; see `run`."""
