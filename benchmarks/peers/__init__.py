"""Other servers beside Offramp: the same weights, the same pictures, on the same machine."""
