"""Figures of the product as ratios in one run; see `replication`."""
