"""The search: which passes, in which order, with which settings; trials, cache, choice."""
