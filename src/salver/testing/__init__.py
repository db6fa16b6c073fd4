"""Conformance suites for every family, for members of this package and of others: subclass one per member.

Needs the extra `testing` (pytest and Hypothesis); nothing outside tests imports it.
"""
