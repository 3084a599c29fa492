"""The cluster simulator: the real core on a virtual clock, with as many replicas as you like.

No Ray, no torch. What it decides with is `core`'s; what it makes up is the seconds a turn takes.
"""
