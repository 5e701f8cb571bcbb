"""Talking to a node: requests, the stream, the state of the link."""
