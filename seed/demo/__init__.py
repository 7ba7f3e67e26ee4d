"""The embedded default: a small Llama that reads Python, and the text it is scored on.

``model/`` is an ordinary checkpoint with its card; ``library`` is the only text it needs, the
standard library of the interpreter at hand. ``benchmarks/demo_model.py`` made the checkpoint.
"""

from pathlib import Path

MODEL_DIRECTORY = Path(__file__).parent / "model"
