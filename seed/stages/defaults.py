"""What a model outside a study is judged on where nothing is told: its own text and windows, or those of what it was made from.

Nothing heavy is imported here, and no text is opened.
"""

from pathlib import Path

from seed.optimize.space import Preset, list_presets, load_preset, presets_directory
from seed.stages import planning
from seed.stages.starts import find_origin

DEFAULT_TEXT = "wikitext2"  # of models of the hub


def choose_window(name: str, given: int | None, *, preset: Preset | None, longest: int) -> tuple[int, str]:
    """Return how many tokens a window holds, and why: as told, else as the original is judged, where it is known.

    Perplexities on windows of two lengths do not compare: the longer one gives more context.
    """
    if given is not None:
        return given, "as told"
    if preset is not None:
        return preset.data.window_tokens, f"as {name}'s search space has it"
    origin = find_origin(name)
    if origin is not None:
        known = origin.window_tokens
        if known is not None and 2 <= known <= longest:
            return known, f"as in the study that it comes from, of {origin.base_model} (seed.json)"
        base = planning.name_base(origin.base_model)
        if base in list_presets():
            window = load_preset(presets_directory() / f"{base}.toml").data.window_tokens
            if window <= longest:
                return window, f"as the search space of its original, {base}, has it"
    return min(
        1024, longest
    ), "as many as it reads, 1,024 at most; a PPL on other windows does not compare (--window-tokens)"


def choose_text(name: str, *, preset: Preset | None) -> str:
    """The text to be judged on where none is named: the model's own, or its study's where that is a known corpus.

    Raises:
        CorpusError: a local model has neither.
    """
    if preset is not None:
        return preset.data.corpus
    origin = find_origin(name)  # may come from anyone, so no file that it names is opened
    if origin is not None and origin.test_text in planning.NAMED_TEXTS:
        return origin.test_text
    if Path(name).expanduser().is_dir():
        raise planning.ask_for_text(name, option="--test-text")
    return DEFAULT_TEXT
