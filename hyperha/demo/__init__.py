"""The two-node demonstration on one machine, and the failover drill."""
