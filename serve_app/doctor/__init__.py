"""What is wrong with a set-up, found before the service starts: facts gathered, then judged.

Every check is a plain function from facts to findings, so a broken machine is a value in a test.
Knows no Ray, and asks nothing of any other machine but the Ray cluster that the settings name.
"""
