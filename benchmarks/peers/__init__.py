"""Other servers, measured side by side with ours: the same weights, the same pictures, on the same machine."""
