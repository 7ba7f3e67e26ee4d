"""A mergekit recipe of a cut model: the same layers stacked by mergekit's passthrough give the same weights.

Only for models without recovery: what was trained or fitted is in no recipe. The format:
https://github.com/arcee-ai/mergekit (slices of sources, each a model and a range of layers with its end left out).
"""

from collections.abc import Sequence

from seed.records import find_runs
from seed.reporting.front import spell_scalar


def write_recipe(model: str, *, revision: str | None, kept_layers: Sequence[int], dtype: str | None) -> str:
    """Return mergekit.yml.

    Args:
        model: the hub id or directory that is cut.
        revision: of a model of the hub.
        kept_layers: by their index in that model.
        dtype: of its weights; None: they have several, and each keeps its own.
    """
    lines = ["# mergekit-yaml mergekit.yml DIRECTORY stacks the same layers", "slices:"]
    for run in find_runs(kept_layers):
        lines += ["- sources:", *_name_model(model, revision), f"    layer_range: [{run[0]}, {run[-1] + 1}]"]
    lines.append("merge_method: passthrough")
    if dtype is not None:
        lines.append(f"dtype: {dtype}")
    return "\n".join(lines) + "\n"


def _name_model(model: str, revision: str | None) -> list[str]:
    """A model as mergekit reads it: in a plain string "@" begins a revision, and "+" an adapter."""
    if not set(model) & set("@+"):
        return [f"  - model: {spell_scalar(model if revision is None else f'{model}@{revision}')}"]
    lines = ["  - model:", "      model:", f"        path: {spell_scalar(model)}"]
    return lines if revision is None else [*lines, f"        revision: {spell_scalar(revision)}"]
