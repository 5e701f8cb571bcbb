"""Every state that a power cut may leave of durable writes, and what recovery makes of it."""
