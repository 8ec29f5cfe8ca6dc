"""The multi-exit network: architecture, exits, preprocessing, cost, bundle. It imports no training and no HTTP."""
