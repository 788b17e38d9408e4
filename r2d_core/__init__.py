"""Reasoning-to-Defend: the package behind the notebooks of the R2D book."""

__version__ = "0.1.0"
