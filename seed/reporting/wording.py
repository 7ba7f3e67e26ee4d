"""How numbers, layers and models are put into words, the same way everywhere; and foreign strings into Markdown.

Plain text: whoever writes HTML escapes it there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from seed.records import GGML_TYPES, KIND_WORDS, MARGIN, Candidate, DraftTiming, Estimate, Latency, WidthCut, find_runs

if TYPE_CHECKING:  # it takes numpy, and commands word their help with this
    from seed.results import Drafting

ABSENT = "\N{EN DASH}"
MARGIN_PERCENT = f"{100 * MARGIN:g}\u00a0%"
PROXY_NAMES = {
    "none": "no recovery",
    "closed-form": "closed-form recovery",
    "short-distillation": "short distillation",
    "full-distillation": "full distillation",
}
# types of a GGUF file that transformers and it have in common; others are quantized
GGUF_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SHORT_DISTILLATION_STEPS = re.compile(r"short-distillation-(\d+)")


def name_proxy(proxy: str) -> str:
    """Return what people call a proxy; an unknown one keeps its own name."""
    if match := SHORT_DISTILLATION_STEPS.fullmatch(proxy):
        return f"{int(match[1]):,} distillation step{'' if int(match[1]) == 1 else 's'}"
    return PROXY_NAMES.get(proxy, proxy)


def is_quantized(types: Iterable[str]) -> bool:
    """Are weights among a GGUF file's types that were rounded to few bits?"""
    return not GGUF_FLOATS.keys() >= set(types)


def describe_gguf(types: Mapping[str, int]) -> str:
    """Return ``a GGUF file of quantized weights (210 tensors in Q4_1, 61 in F32), put back into bfloat16``."""
    listed = ", ".join(
        f"{count:,}{'' if index else ' tensors'} in {name}" for index, (name, count) in enumerate(types.items())
    )
    if not is_quantized(types):
        return f"a GGUF file ({listed})"
    return f"a GGUF file of quantized weights ({listed}), put back into bfloat16"


def name_depth(candidate: Candidate) -> str:
    """Return ``10 of 12 layers``; where attention or MLP go alone, ``9 of 12 attentions, 11 of 12 MLPs``."""
    if candidate.lacking:
        attentions, mlps = candidate.count_kept()
        return f"{attentions} of {candidate.num_layers} attentions, {mlps} of {candidate.num_layers} MLPs"
    return f"{len(candidate.kept_layers)} of {candidate.num_layers} layers"


def name_width(width: WidthCut) -> str:
    """Return ``none; MLP 304, 3 heads``: no layer is gone, and all are cut."""
    return f"none; MLP {width.mlp_width:,}, {count_things(width.num_heads, 'head')}"


def name_drop(num_dropped: float) -> str:
    """Return the short label of a depth, a minus sign and the number of dropped layers."""
    return f"\N{MINUS SIGN}{num_dropped:g}"


def list_layers(layers: Sequence[int]) -> str:
    """Return ``1, 5 to 7``, with a dash for "to": runs of three or more are joined. No layers: ``none``."""
    parts: list[str] = []
    for run in find_runs(layers):
        parts += [f"{run[0]}\N{EN DASH}{run[-1]}"] if len(run) > 2 else [str(layer) for layer in run]
    return ", ".join(parts) or "none"


def list_dropped(candidate: Candidate) -> str:
    """Return what is gone of a model: ``1, 5 to 7`` as ``list_layers`` has it, or ``1.attn, 5, 6.mlp``."""
    return ", ".join(candidate.parts) if candidate.lacking else list_layers(candidate.dropped_layers)


def list_lacking(candidate: Candidate) -> str:
    """Return ``2 (attention), 5 (MLP)``: kept layers and what they lack."""
    return ", ".join(f"{layer} ({KIND_WORDS[kind]})" for layer, kind in candidate.lacking.items())


def format_number(value: float, *, places: int = 3) -> str:
    """Return a number with ``places`` decimals and grouped thousands."""
    return f"{value:,.{places}f}"


def format_count(count: int) -> str:
    """Return a count in full below ten thousand, otherwise in thousands (k), millions (M) or billions (B)."""
    if count < 10_000:
        return f"{count:,}"
    return scale(count, units=("", "k", "M", "B"))


def format_bytes(count: float) -> str:
    """Return bytes in decimal units: 1 MB is 1,000,000 bytes."""
    return scale(count, units=("bytes", "kB", "MB", "GB", "TB"))


def scale(value: float, *, units: Sequence[str]) -> str:
    """Return ``value`` in the largest unit that leaves at least 1, with three significant digits."""
    step = 0
    # 999.5 would print as 1000 of the smaller unit.
    while abs(value) >= 999.5 and step < len(units) - 1:
        value /= 1000
        step += 1
    digits = 0 if step == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f}\u00a0{units[step]}".rstrip("\u00a0")


def format_latency_ratio(latency: Latency) -> str:
    """Return the ratio with its 95 % interval; the interval is left out where it is the point itself, or there is none."""
    ratio = format_number(latency.ratio)
    if not latency.repeats:
        return f"{ratio} (predicted)"
    if latency.ratio_low is None or latency.ratio_high is None:
        return f"{ratio} ({count_things(latency.repeats, 'pair')})"
    if latency.ratio_low == latency.ratio == latency.ratio_high:
        return ratio
    return f"{ratio} [{format_number(latency.ratio_low)}, {format_number(latency.ratio_high)}]"


def format_interval(estimate: Estimate, spec: str = ",.3f", *, unit: str = "", end: str = "") -> str:
    """Return ``1.015 [1.011, 1.020]``; the interval is left out where there is none. ``unit`` follows the value, ``end`` the whole."""
    if estimate.value is None:
        return ABSENT
    value = f"{estimate.value:{spec}}{unit}"
    if estimate.low is None or estimate.high is None:
        return value + end
    return f"{value} [{estimate.low:{spec}}, {estimate.high:{spec}}]{end}"


def format_signed(estimate: Estimate) -> str:
    """Return ``+0.78 [+0.60, +0.90]``."""
    return format_interval(estimate, "+z,.2f")


def format_change(share: Estimate) -> str:
    """Return a share as ``+1.20 [+0.70, +1.70] %``."""
    return format_interval(take_percent(share), "+z,.2f", end="\u00a0%")


def take_percent(share: Estimate) -> Estimate:
    """Return a share in per cent."""
    value, low, high = (None if end is None else 100 * end for end in (share.value, share.low, share.high))
    return Estimate(value=value, low=low, high=high)


def name_bits(bits: int | None) -> str:
    """Return how weights are stored: ``8 bits (Q8_0)``; None: as the checkpoint has them."""
    return "as stored" if bits is None else f"{bits} bits ({GGML_TYPES[bits]})"


def compare_size(num_params: int, *, dense_num_params: int) -> str:
    """Return ``16 % smaller``, in parameters."""
    share = 1 - num_params / dense_num_params
    if abs(share) < 0.0005:
        return "as large as the dense model"
    return f"{100 * abs(share):.{0 if abs(share) >= 0.0995 else 1}f}\u00a0% {'smaller' if share > 0 else 'larger'}"


def count_things(count: float, noun: str) -> str:
    """Return ``1 model`` or ``3 models``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def join_words(words: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def describe_drafting(found: "Drafting") -> str:
    """Return ``1.24x the dense model's speed expected, 3 tokens ahead``, or that it is no gain."""
    if not found.tokens_ahead:
        return "no gain expected"
    return f"{found.speedup:.2f}x the dense model's speed expected, {count_things(found.tokens_ahead, 'token')} ahead"


def describe_draft(found: DraftTiming) -> str:
    """Return ``1.21x [1.18, 1.24] the dense model's speed, 3 tokens ahead, the same tokens after 8 of 8 prompts``."""
    return (
        f"{format_interval(found.speedup, '.2f', unit='x')} the dense model's speed, {count_things(found.tokens_ahead, 'token')} ahead, the same tokens after "
        f"{found.same} of {count_things(found.prompts, 'prompt')}"
    )


# ---- Markdown

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
MARKUP = re.compile(r"([\\`*_\[\]{}~|#!])")


def escape_text(text: str) -> str:
    """Return Markdown that shows ``text`` as it is, on one line: no marks and no HTML. Bare addresses become links."""
    return "".join(ENTITIES.get(char, char) for char in MARKUP.sub(r"\\\1", re.sub(r"[\r\n\t ]+", " ", text)))


def quote_code(text: str) -> str:
    """Return Markdown that shows ``text`` as code on one line, whatever backticks it holds."""
    plain = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain.startswith("`") or plain.endswith("`") or not plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def quote_block(text: str) -> list[str]:
    """Return the lines of a Markdown code block that shows ``text``, whatever it holds."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [fence, *text.splitlines(), fence]
