"""Safety copies: what a resync destroys is saved before, to undo it or to get it back (R15, N3)."""
