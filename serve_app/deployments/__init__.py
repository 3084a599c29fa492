"""The distribution: stages as replicas, the conductor that walks images through them, routing.

Ray lives here. Knows no HTTP. Plain classes: `app.py` wraps them with `serve.deployment`.
"""
