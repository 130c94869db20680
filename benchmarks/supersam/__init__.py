"""The claim on SuperSAM: MiniSAM on two domains that it was not trained on."""
