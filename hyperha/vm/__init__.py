"""Drivers: how a VM is run, stopped, watched and ended. The port, and one module per driver."""
