"""The replication engine: one process per module and node, the data path and the stream."""
