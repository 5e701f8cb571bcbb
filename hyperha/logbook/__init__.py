"""What happened: messages with sequence numbers, the journal on disk, outputs of scripts."""
