"""What a multi-exit network is: architecture, exits, preprocessing, cost, bundle. Knows neither training nor HTTP."""
