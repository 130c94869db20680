"""What is in a model, and its sub-networks: masked, cut and saved."""
