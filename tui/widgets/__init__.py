"""Widgets that draw rows of the model."""
