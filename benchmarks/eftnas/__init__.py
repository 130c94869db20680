"""The claim on EFTNAS: spaces and orders from scores, beside lists made by hand and other orders."""
