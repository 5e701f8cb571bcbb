"""The full-screen console: watches and steers one cluster through a node's API."""
