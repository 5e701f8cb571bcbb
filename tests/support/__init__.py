"""What tests of every kind share; the root of the checkout stands here, the rest in modules."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The root of the checkout: where processes begin that import the product and the tests."""
