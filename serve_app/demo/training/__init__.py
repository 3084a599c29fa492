"""How the demo checkpoint was trained: networks, tokenizer, dataset, training runs and packing.

Nothing of it runs in a service. Run it with `python -m serve_app.demo.training`.
"""
