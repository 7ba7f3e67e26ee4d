"""Seed finds the transformer layers a language model can live without on your hardware.

Start at ``seed.search``: it is the command, and ``find_frontier`` is the same pass for scripts.
"""

__version__ = "0.2.0"
