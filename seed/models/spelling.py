"""The config.json of an export, in the words of its original's: other readers know those, and may know no others."""

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from seed import study_dir

CONFIG = "config.json"
# What says nothing of how a model computes, or is taken out of every export.
UNTOLD = ("_name_or_path", "transformers_version", "auto_map", "dtype")
# files of weights tell it too, so that it is said only where the original says it
DTYPE_FIELDS = ("dtype", "torch_dtype")
# Their configs have words of their own for rotation, and where there is ``rope_scaling`` read the base from those alone.
NEOX = ("gpt_neox", "gpt_neox_japanese")
# Of rotation, older configs keep these outside of ``rope_scaling``.
OUTSIDE = ("rope_theta", "partial_rotary_factor")


def spell_config(directory: Path, *, original: Path | None) -> None:
    """Spell an exported config.json as the original's is, but for what was changed; where that is new, in older words too.

    Args:
        directory: where transformers wrote the config of what is exported.
        original: where the original lies; None: it lies in no directory.
    """
    file = directory / CONFIG
    source = file if original is None or not (original / CONFIG).is_file() else original / CONFIG
    text = source.read_text(encoding="utf-8")
    written, said = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
    spelled = _respell(said, written) or written
    spelled = json.loads(json.dumps(spelled), object_hook=spell_rope)
    is_sorted = list(said) == sorted(said)  # as transformers writes it
    text = json.dumps(spelled, indent=2, ensure_ascii=text.isascii(), sort_keys=is_sorted)
    file.write_text(text + "\n", encoding="utf-8")


def spell_rope(found: dict[str, Any]) -> dict[str, Any]:
    """Add to a config how positions are rotated in the older words: ``rope_theta``, ``rope_scaling``, and the like.

    transformers 5 writes ``rope_parameters`` alone, and reads either. Others look for the older words in most families, and
    take a base or a share of their own where they find none, without a word: other logits. What has no
    ``rope_parameters`` is in the older words already.
    """
    rope = found.get("rope_parameters")
    if not isinstance(rope, dict):
        return found
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    is_by_kind = isinstance(full, dict) or isinstance(sliding, dict)  # of layers; the older words of Gemma 3
    if is_by_kind:
        rope = full or {}
        older = {"rope_theta": rope.get("rope_theta"), "rope_local_base_freq": (sliding or {}).get("rope_theta")}
    else:
        older = {name: rope.get(name) for name in OUTSIDE}
        if found.get("model_type") in NEOX:
            older |= {"rotary_emb_base": rope.get("rope_theta"), "rotary_pct": rope.get("partial_rotary_factor")}
    kind = rope.get("rope_type", "default")
    scaling = {name: value for name, value in rope.items() if name not in OUTSIDE}
    if kind == "longrope":  # older readers of Phi-3 accept its own words inside, and no others
        scaling = {name: value for name, value in scaling.items() if name != "rope_type" and name not in found}
        scaling["type"] = kind
    # Some want it said that there is none. Of each kind of layer, the older words know none or Gemma 3's, which is linear.
    if not is_by_kind or kind == "linear":
        found = {"rope_scaling": None if kind == "default" else scaling} | found
    return {name: value for name, value in older.items() if value is not None} | found


def _respell(original: dict[str, Any], written: dict[str, Any]) -> dict[str, Any] | None:
    """The original's config with what is otherwise in the written one; None: it would not be read as that."""
    try:
        before, wanted = _open(original), _open(written)
        goal = _list_fields(before) | _compare(_list_fields(_open(before)), _list_fields(wanted))
        spelled = copy.deepcopy(original)
        for is_new in (False, True):  # added is only what the original's own words cannot say
            for path, value in _compare(_list_fields(_open(spelled)), goal).items():
                _put(spelled, path, value, wanted, is_new=is_new)
        if _compare(_list_fields(_open(spelled)), goal):
            return None
    except Exception as error:  # only code of its own opens it, or the family has checks that its own words fail
        if getattr(error, "errno", None) is not None or study_dir.is_out_of_memory(error):
            raise
        return None
    _put_dtypes(spelled, written)
    return spelled


def _open(config: Any) -> Any:
    """A config, or the content of its file, as transformers reads it once it is written."""
    with tempfile.TemporaryDirectory() as directory:
        if isinstance(config, transformers.PretrainedConfig):
            config.save_pretrained(directory)
        else:
            (Path(directory) / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        return transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _list_fields(config: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """All fields of a config and of its parts, such as a text part's, by the names of the parts and their own."""
    fields: dict[tuple[str, ...], Any] = {}
    for name, value in json.loads(config.to_json_string(use_diff=False)).items():
        part = getattr(config, name, None)
        if isinstance(part, transformers.PretrainedConfig):
            fields |= _list_fields(part, (*path, name))
        elif name not in UNTOLD:
            fields[*path, name] = value
    return fields


def _compare(found: Mapping[tuple[str, ...], Any], goal: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
    """The fields that have to change for one config to be another, as that has them."""
    return {path: goal.get(path) for path in {**found, **goal} if found.get(path) != goal.get(path)}


def _put(content: dict[str, Any], path: tuple[str, ...], value: Any, config: Any, *, is_new: bool) -> None:
    """Write a field where a config says it, under the name that it has there; ``is_new``: also where it does not."""
    *parts, name = path
    place = content
    for part in parts:
        config = getattr(config, part)
        if not isinstance(place.get(part), dict):
            if not is_new:
                break  # some say at the top what others say in a part
            place[part] = {}
        place = place[part]
    names = [name, *(alias for alias, real in config.attribute_map.items() if real == name)]
    said = next((one for one in names if one in place), name if is_new else None)
    if said is not None:
        place[said] = value


def _put_dtypes(content: dict[str, Any], written: Mapping[str, Any]) -> None:
    """Write the types of weights where a config says them."""
    for name in DTYPE_FIELDS:
        if content.get(name) is not None:
            content[name] = written.get(DTYPE_FIELDS[0], content[name])
    for name, part in written.items():
        if isinstance(part, dict) and isinstance(content.get(name), dict):
            _put_dtypes(content[name], part)
