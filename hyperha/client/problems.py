"""What the client raises, for callers that know the client and not the rest of hyperha."""

from hyperha.errors import (
    BusyError,
    HyperhaError,
    LossError,
    RefusedError,
    StaleViewError,
    UnreachableError,
    UsageError,
)

__all__ = [
    "BusyError",
    "HyperhaError",
    "LossError",
    "RefusedError",
    "StaleViewError",
    "UnreachableError",
    "UsageError",
]
