"""What becomes of every request when load, callers or broken processes try the service.

`service` starts it over sleeping replicas, `load` sends requests at their times, `processes` kills,
stops and measures, `verdict` classifies every answer and compares every picture, `measure` makes
the undisturbed figures to compare with, and `report` collects the rows of the table with which the
run ends. Faults inside a replica are named by prompts: see `serve_app.testing.fault`.
"""
