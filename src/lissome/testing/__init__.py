"""What tests of this package and of plug-ins share: toy models and the conformance suite."""
