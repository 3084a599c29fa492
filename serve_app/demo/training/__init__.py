"""How the demo checkpoint was made: networks, words, three courses, and the packing.

Knows no engine. Nothing here runs in a service; `python -m serve_app.demo.training` runs it.
"""
