"""Operators' scripts around or instead of a driver's steps: bounded, captured, explained."""
