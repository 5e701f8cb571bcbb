"""Every small combination of faults, tried: two real cores in a world whose states are counted.

`node` is one node as a value, with engine, VM and disk modelled by what they promise; `cluster` is
two of them and the network between; `explore` visits every state that can be reached.
"""
