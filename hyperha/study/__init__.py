"""Running the core again, or ahead of time: what it decided, and what it would decide."""
