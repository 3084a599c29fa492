"""The distribution: stages as replicas, the conductor in front of them, the ledger, routing.

Ray, no HTTP. Classes are plain: `graph.py` makes deployments of them.
"""
