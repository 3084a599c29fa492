"""The spool: what a stop leaves unfinished, on disk, for the next start to finish.

Plain and synchronous: no Ray, no HTTP. `ingress/job_spool.py` is what uses it.
"""
