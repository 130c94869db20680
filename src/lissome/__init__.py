"""lissome: from one pre-trained model, the members of its family that fit your devices and your budget."""

__version__ = "0.1.0"
