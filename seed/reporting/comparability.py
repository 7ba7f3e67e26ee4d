"""What the numbers of several studies have in common, and which of them may not be set beside each other.

Plain text and truths only; whatever is not known of both is taken to differ.
"""

import re
from collections.abc import Mapping
from typing import Any

from seed.findings import StudyRecord
from seed.reporting.leads import join_words
from seed.reporting.wording import ABSENT, list_layers

SAME_MODEL = ("location", "revision", "commit", "weights_sha256")
SAME_WINDOWS = ("window_tokens", "bos_each_window", "test_tokens")
SAME_SPEED = ("device", "latency_batch", "prompt_tokens", "new_tokens", "compiled", "latency_command", "dtype")
HASH, HASH_DIGITS = re.compile(r"[0-9a-f]{40,}"), 12


def say_comparability(studies: Mapping[str, StudyRecord]) -> list[str]:
    """Return what the numbers of these studies have in common, and what may not be compared."""
    records = list(studies.values())
    is_one_model = has_same_model(studies)
    sentences = [
        "All cut the same dense model. Ratios are to it, as each study measured it."
        if is_one_model
        else "The studies cut different dense models, or do not say which. Ratios are to each study's own, so they say what dropping layers costs and "
        "gains there, not which model is better."
    ]
    proxies = [name for name, record in studies.items() if not record.distilled]
    if proxies:
        sentences.append(
            f"Not distilled, and shown by the proxy on validation text, which is no fair rival of a distilled model: {', '.join(proxies)}."
        )
    tokens = {record.plan.distill_tokens for record in records if record.distilled}
    if len(tokens) > 1:
        said = " and ".join(f"{count:,}" for count in sorted(tokens))
        sentences.append(
            f"Models were distilled for different numbers of tokens ({said}), which is part of what differs here."
        )
    same_text, same_speed = has_same_text(studies), has_same_speed(studies)
    sentences.append(
        "Test text, tokens and windows are the same, so test perplexities may be compared themselves."
        if same_text
        else "Perplexities themselves may not be compared: the studies differ in test text, or in how it becomes tokens or windows."
    )
    dense = join_words([f"{record.dense.latency.median_ms:.1f}" for record in records])
    sentences.append(
        f"Milliseconds may not be compared: the same dense model took {dense} ms, too far apart for one machine that was equally free."
        if same_speed and not is_steady(studies)
        else "Workload and kind of device are the same, so milliseconds may be compared as far as runs at different times can be: "
        f"the dense model took {dense} ms."
        if same_speed and is_one_model
        else "Workload and kind of device are the same, so milliseconds may be compared, as far as runs at different times can be."
        if same_speed
        else "Milliseconds may not be compared: the studies differ in device, threads, type or workload."
    )
    if same_text and same_speed and is_steady(studies) and proxies:
        sentences.append(
            "A plot in perplexity and milliseconds is left out: without distillation there is no test perplexity."
        )
    return sentences


def has_same_model(studies: Mapping[str, StudyRecord]) -> bool:
    """Do all cut the same weights?"""
    known = [tuple(record.plan.identity.get(key) for key in SAME_MODEL) for record in studies.values()]
    return known[0][0] is not None and len(set(map(spell, known))) == 1


def has_same_text(studies: Mapping[str, StudyRecord]) -> bool:
    """Were all judged on the same tokens, cut into the same windows?"""
    texts = [read_identity(record, "streams").get("test", {}).get("sha256") for record in studies.values()]
    windows = {spell(tuple(record.plan.identity.get(key) for key in SAME_WINDOWS)) for record in studies.values()}
    return texts[0] is not None and len(set(texts)) == 1 and len(windows) == 1


def has_same_speed(studies: Mapping[str, StudyRecord]) -> bool:
    """Were all timed alike, on devices of the same name?"""
    known = {
        spell(
            (
                *(record.plan.identity.get(key) for key in SAME_SPEED),
                record.environment.processor,
                record.environment.num_threads,
                record.dense.latency.device,
                record.dense.latency.workload,
            )
        )
        for record in studies.values()
    }
    return len(known) == 1


def is_steady(studies: Mapping[str, StudyRecord]) -> bool:
    """Did the same dense model take about as long each time? Different models may take what they take.

    Too far apart: the middle 80 % of one study's times and of another's do not overlap.
    """
    if not has_same_model(studies):
        return True
    times = [record.dense.latency for record in studies.values()]
    return max(time.p10_ms for time in times) <= min(time.p90_ms for time in times)


def has_one_scale(studies: Mapping[str, StudyRecord]) -> bool:
    """May perplexities and milliseconds themselves be compared?"""
    is_timed_alike = has_same_speed(studies) and is_steady(studies)
    return has_same_text(studies) and is_timed_alike and all(record.distilled for record in studies.values())


def read_identity(record: StudyRecord, key: str) -> dict[str, Any]:
    """Return a part of a study's identity that is made of parts, or nothing."""
    found = record.plan.identity.get(key)
    return found if isinstance(found, dict) else {}


def spell(value: object) -> str:
    """Return a value of a protocol as a cell has room for it: hashes by their first digits, layers by their runs."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        if value and all(type(item) is int for item in value):
            return list_layers(value)
        return ", ".join(map(spell, value)) or ABSENT
    text = str(value)
    return f"{text[:HASH_DIGITS]}…" if HASH.fullmatch(text) else text
