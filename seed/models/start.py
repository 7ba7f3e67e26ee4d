"""A recovered model that a search goes on from: what its folder says of itself, checked before anything is opened.

Nothing heavy is imported here, so that a wrong start is answered at once.
"""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seed import untrusted
from seed.errors import ModelError, SeedError
from seed.models.files import refuse_damaged
from seed.records import Candidate

CURE = "Give a model that Seed exported, such as studies/demo/models/drop-1-7."


@dataclass(frozen=True, kw_only=True)
class Start:
    """A recovered model: where it lies, which layers it lacks, of which original, and what its recovery took."""

    path: Path
    candidate: Candidate
    base_model: str
    base_revision: str | None
    base_sha256: str | None
    tokens: int  # recovery tokens in all
    is_narrow: bool  # all its layers are there, cut in width
    is_recovered: bool = True  # False: as it was cut
    window_tokens: int | None = None  # that it was judged on; None: not known
    test_text: str | None = None  # likewise


def read_start(path: Path) -> Start:
    """Read what an exported model says of itself.

    Raises:
        ModelError: it is not a model that Seed exported, or no longer as that was, or has all its layers.
    """
    place = f"--start {path}"
    start = read_origin(path, place=place)
    if start.is_narrow or not start.candidate.dropped_layers:
        raise ModelError(f"{place}: has all its layers, cut in width, and a search goes on from fewer layers. {CURE}")
    refuse_damaged(path, place=place)
    return start


def find_origin(model: str) -> Start | None:
    """What a model's directory says of where it comes from, where Seed made it; None: it did not, or nothing can be read."""
    path = Path(model).expanduser()
    if not os.path.isfile(path / "seed.json"):  # nor where that may not be read, which opening it says better
        return None
    try:
        return read_origin(path, place=model)
    except SeedError:  # a file of that name that is not ours: the model opens without
        return None


def describe_original(model: str) -> str | None:
    """Say what a search takes for its original, where that is a model which Seed made from another; None: it is not.

    Raises:
        ModelError: it is damaged.
    """
    made = find_origin(model)
    if made is None:
        return None
    refuse_damaged(made.path, place=f"--model {model}")
    kept, total = len(made.candidate.kept_layers), made.candidate.num_layers
    cut = "all its layers, cut in width" if made.is_narrow else f"{kept} of its {total} layers"
    state = "recovered" if made.is_recovered else "not recovered since they were cut"
    said = (
        f"{model}: is not an original, but what Seed made of {made.base_model} ({cut}, {state}). This search takes it for the "
        "original: it is the teacher, and ratios are to it as it stands."
    )
    if made.is_narrow or not made.candidate.dropped_layers:
        return said
    return f"{said} To keep {made.base_model} as teacher and base of every ratio, give --start {shlex.quote(model)} instead of --model."


def read_origin(path: Path, *, place: str) -> Start:
    """Read what an exported model says of where it comes from, whatever it lacks. ``place`` begins what errors say.

    Raises:
        ModelError: it is not a model that Seed exported.
    """
    try:
        content: Any = json.loads(untrusted.read_bounded(path / "seed.json"))
        candidate = Candidate.keep(
            num_layers=int(content["num_layers"]), kept_layers=tuple(map(int, content["kept_layers"]))
        )
        if candidate.dropped_layers != tuple(content["dropped_layers"]) or not candidate.kept_layers:
            raise ValueError("kept and dropped layers do not make up the original's")
        base, settings = str(content["base_model"]), content["settings"]
        revision, sha256 = content.get("base_revision"), content.get("base_sha256")
        tokens = int(settings["distill_tokens"]) + int(settings.get("earlier_tokens", 0))
        width = content.get("width")
        window = content.get("window_tokens")
        test_text = ((content.get("streams") or {}).get("test") or {}).get("source")
        is_recovered = content.get("recovered") is not False  # earlier versions said nothing, and exported no other
    except OSError as error:
        raise ModelError(f"{place}: no seed.json there. {CURE}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{place}: its seed.json is damaged ({error}). {CURE}") from error
    return Start(
        path=path.resolve(),
        candidate=candidate,
        base_model=base,
        base_revision=None if revision is None else str(revision),
        base_sha256=None if sha256 is None else str(sha256),
        tokens=tokens,
        is_narrow=width is not None,
        is_recovered=is_recovered,
        window_tokens=window if isinstance(window, int) else None,
        test_text=test_text if isinstance(test_text, str) else None,
    )
