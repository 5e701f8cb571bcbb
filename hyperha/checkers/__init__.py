"""Checkers: kinds of checks, and when they run, count and speak."""
