"""The cluster simulator: the real core on a virtual clock, with any number of replicas.

No Ray and no torch. All decisions are `core`'s; only the seconds that turns take are made up.
"""
