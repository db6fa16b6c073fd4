"""One script per real client. Each runs in the interpreter that has that client, which need not have Salver.

They import the client, numpy and `harness.py` beside them, read calls from standard input and write answers to
standard output, one JSON document a line. What a client cannot do, its script has no method for.
"""
