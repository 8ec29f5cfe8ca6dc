"""Training of self-distilled multi-exit classifiers: data, losses, recipes, evaluation. Imports `models`."""
