"""What happens to a row: pure decisions, contracts, and the chain of stages.

Importing this package loads no engine, tensor or vector library, so that parsing a
configuration never costs the seconds that those take.
"""
