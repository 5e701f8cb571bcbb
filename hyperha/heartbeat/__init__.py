"""Heartbeats: the codec, who is believed, which LANs are up, and the thread that sends them.

Empty on purpose: the guardian imports `message` and `seal` alone and must stay small.
"""
