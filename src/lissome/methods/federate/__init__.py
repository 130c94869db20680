"""One model from many silos."""
