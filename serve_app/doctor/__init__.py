"""Find what is wrong with an installation before the service starts: probe, then judge.

Probes read the machine; every check is a plain function from their values to findings, so a test
describes a broken machine as a value. No Ray is imported. Of other machines, only the Ray cluster
that RAY_ADDRESS names is contacted.
"""
