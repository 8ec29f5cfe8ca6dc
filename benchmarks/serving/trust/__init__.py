"""The claims of docs/trust.md, measured: `offramp bench trust`."""
