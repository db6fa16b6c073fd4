"""The build wing: a trained model in, evaluated candidates, the chosen one sealed."""

from salver.builder.build import build, load

__all__ = ["build", "load"]
