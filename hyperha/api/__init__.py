"""The HTTP API of a node: wire models, routes, the stream."""
