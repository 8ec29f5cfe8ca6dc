"""What a multi-exit network is: architecture, exits, preprocessing, cost and bundle. Knows neither training nor HTTP."""
