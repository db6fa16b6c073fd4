"""Hostile bytes for every codec and connection: grammars make them, targets take them, engines drive both.

See ``docs/fuzzing.md``.
"""
