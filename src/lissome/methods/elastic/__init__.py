"""One model, many sizes."""
