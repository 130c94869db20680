"""The claim on EFTNAS: spaces and orders from learnt scores, beside lists made by hand and other orders."""
