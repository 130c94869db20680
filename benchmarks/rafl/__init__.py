"""RaFL against the weakest common model and local training, at full and at sporadic participation."""
