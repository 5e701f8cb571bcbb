"""The decisions, and nothing else: no clock, no input or output, no randomness, no threads.

`machine.step(state, stimulus)` gives the next state and the actions to perform; it is total and
deterministic. Everything that happens comes in as an event, everything that is to be done leaves
as an action, and the result of an action comes back as an event.
"""
