"""The `hyperha` command."""
