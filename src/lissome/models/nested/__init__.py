"""A decoder in one file from which several precisions are read; reading it needs no torch."""
