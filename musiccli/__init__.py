"""Multi-turn reward models from multi-step instruction contrast (MUSIC, arXiv 2512.24693)."""

__version__ = "0.1.0"
