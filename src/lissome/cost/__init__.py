"""What a model costs on a device: counted, measured, predicted."""
