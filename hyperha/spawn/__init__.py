"""The only place that starts processes (S1): `run` for the daemon, `tree` for whoever ends them.

Empty on purpose: the guardian imports `tree` alone and must stay small.
"""
