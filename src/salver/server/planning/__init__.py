"""The scheduler in simulated time: what a fleet of servers would do with given traffic, and how large it must be."""
