"""Every state that a power cut may leave of what is written durably, and what recovery makes of it."""
