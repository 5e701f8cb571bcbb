"""The daemon: the shell that feeds the cores and performs what they decide."""
