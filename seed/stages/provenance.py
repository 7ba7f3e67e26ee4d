"""What a checkpoint says of where it comes from: the content of seed.json beside its weights.

Layers go by their index in the original throughout, however often a model was cut. Nothing is read or written here.
"""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import msgspec

from seed import __version__
from seed.plans import Protocol, StreamRecord
from seed.records import Candidate, DistillResult, Latency, Quality, Size

PACKAGES = ("torch", "transformers", "safetensors")


def describe_recovered(
    protocol: Protocol,
    result: DistillResult,
    *,
    study: str,
    licence: Mapping[str, str],
) -> dict[str, Any]:
    """What a distilled model says of itself."""
    return {
        "seed": __version__,
        **describe_origin(protocol),
        "licence": dict(licence),
        **describe_layers(result.candidate),
        "width": None if result.width is None else msgspec.to_builtins(result.width),
        "study": study,
        "trial": result.trial_number,
        "recovered": True,
        "settings": result.settings,
        "streams": describe_streams(protocol.streams),
        "versions": list_versions(),
        "metrics": {
            "validation": describe_quality(result.validation),
            "test": describe_quality(result.test),
            "test_unrecovered": describe_quality(result.test_unrecovered),
            "latency": describe(result.latency),
            "size": describe(result.size),
        },
    }


def describe_raw(
    origin: Mapping[str, Any],
    candidate: Candidate,
    *,
    licence: Mapping[str, str],
    earlier_tokens: int,
    metrics: Mapping[str, Any],
    study: str | None = None,
    trial: int | None = None,
    streams: Mapping[str, StreamRecord] | None = None,
) -> dict[str, Any]:
    """What a model that was only cut says of itself. ``earlier_tokens``: recovery of the model that it was cut from."""
    return {
        "seed": __version__,
        **origin,
        "licence": dict(licence),
        **describe_layers(candidate),
        "width": None,
        "study": study,
        "trial": trial,
        "recovered": False,
        "settings": {"distill_tokens": 0, "earlier_tokens": earlier_tokens},
        "streams": None if streams is None else describe_streams(streams),
        "versions": list_versions(),
        "metrics": dict(metrics),
    }


def describe_origin(protocol: Protocol) -> dict[str, Any]:
    """The original of a study, the model that its candidates were cut from where that is another, and the windows of all PPLs."""
    start = {"path": protocol.start, "sha256": protocol.start_sha256, "tokens": protocol.start_tokens}
    return {
        "base_model": protocol.location,
        "base_revision": protocol.commit or protocol.revision,
        "base_sha256": protocol.weights_sha256,
        "start": None if protocol.start is None else start,
        "window_tokens": protocol.window_tokens,
    }


def describe_layers(candidate: Candidate) -> dict[str, Any]:
    """Which layers of the original are there."""
    return {
        "num_layers": candidate.num_layers,
        "kept_layers": candidate.kept_layers,
        "dropped_layers": candidate.dropped_layers,
    }


def describe_streams(streams: Mapping[str, StreamRecord]) -> dict[str, Any]:
    """The texts with their hashes."""
    return {name: describe(stream) for name, stream in streams.items()}


def describe_quality(quality: Quality) -> dict[str, Any]:
    """A quality without the place of its row in a study."""
    return {name: value for name, value in describe(quality).items() if name != "document_losses_path"}


def describe(record: Latency | Quality | Size | StreamRecord) -> dict[str, Any]:
    """A record as JSON has it: what is no finite number is none."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
    return found


def list_versions() -> dict[str, str]:
    """What wrote it."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
