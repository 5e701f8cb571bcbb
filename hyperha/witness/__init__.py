"""The third party that two nodes ask: the lease witness's service and its client (W1-W11)."""
