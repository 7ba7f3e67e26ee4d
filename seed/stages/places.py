"""Where an export goes, and whether it went there before. What lies in a place is never written over, and nothing is written here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed import study_dir
from seed.errors import StudyError
from seed.models.files import PROVENANCE, find_damage

# What an export says of itself by which it is known again.
SAME = (
    "base_model",
    "base_revision",
    "base_sha256",
    "source_stamp",
    "start",
    "num_layers",
    "kept_layers",
    "width",
    "recovered",
    "settings",
)
# What may lie in an empty place: what a mounted directory is filled from, and what a new file system begins with.
EMPTY = (study_dir.INSIDE, "lost+found")


def find_place(target: Path) -> Path:
    """Follow what the user named to the directory that is to be written there.

    Raises:
        StudyError: this process stands in it, and would stand nowhere once it is replaced.
    """
    place = target.resolve()
    if Path.cwd().is_relative_to(place):
        raise StudyError(f"{target}: this command runs in it, and it would be replaced. Give another --out.")
    return place


def is_written(place: Path, said: Mapping[str, Any], *, target: Path) -> bool:
    """Was the export that says this of itself written to this place before? What lies there is never touched.

    Raises:
        StudyError: something else lies there.
    """
    try:
        study_dir.require_readable(place)
        if not place.exists() or not any(path.name not in EMPTY for path in place.iterdir()):
            return False
        found = json.loads((place / PROVENANCE).read_bytes())
        is_same = all(found.get(name) == said.get(name) for name in SAME)
    except (OSError, ValueError, TypeError, AttributeError):
        is_same = False
    if not is_same:
        raise StudyError(f"{target}: something else is already there. Move it away, or give another --out.")
    if damage := find_damage(place):
        raise StudyError(f"{target}: damaged: {damage}. Move it away, or give another --out.")
    return True


def overlap(source: Path, place: Path) -> bool:
    """Does one of two directories lie in the other, or are they the same?"""
    whole = source.resolve()
    return whole.is_relative_to(place) or place.is_relative_to(whole)


def find_parent(place: Path) -> Path:
    """The nearest directory above that is there."""
    return next(path for path in (place, *place.parents) if path.is_dir())
