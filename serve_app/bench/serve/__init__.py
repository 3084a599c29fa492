"""`aura bench serve`: the whole service over HTTP, against what a user would pick instead.

`systems` has what is measured, one file each; `load` sends requests to one of them; `measurement`
says how it answered; `comparison` measures all of them in turns; `table` and `plot` show it.
"""
