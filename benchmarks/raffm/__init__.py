"""RaFFM against federated averaging of whole models and against other ways to slice, on devices of three sizes."""
