"""What the console knows and shows, as values: no terminal, no network."""
