"""Who is who: the cluster's authority, node certificates, the cluster key, people on this machine.

Must not decide what somebody may do with a module: roles are told, the API applies them.
"""
