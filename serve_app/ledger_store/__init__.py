"""Where the ledger's memory is kept: one contract, in SQLite and in PostgreSQL.

Blocking calls, no Ray and no HTTP: the ledger runs them in threads, and `up` and `doctor` look at a
store before anything else starts.
"""
