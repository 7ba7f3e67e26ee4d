"""Which class of transformers opens a model: one that writes text, with all the parts that the checkpoint has.

``AutoModelForCausalLM`` opens some models that see as their text part alone, and others not at all.
"""

from typing import Any

import transformers


def find_auto_class(config: Any) -> Any:
    """The class of transformers whose ``from_pretrained`` and ``from_config`` open a model of this config whole."""
    causal, whole = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    return whole if _is_read_whole(whole, config) and not _is_read_whole(causal, config) else causal


def find_class(config: Any) -> Any:
    """The class of transformers' own that such a model is of; None: it has none, or only one for the text part of it."""
    auto = find_auto_class(config)
    return auto._model_mapping[type(config)] if _is_read_whole(auto, config) else None


def reads_images(config: Any) -> bool:
    """Has a model of this config a part that sees?"""
    return getattr(config, "vision_config", None) is not None


def _is_read_whole(auto: Any, config: Any) -> bool:
    mapping, kind = auto._model_mapping, type(config)
    return kind in mapping and mapping[kind].config_class is not config.sub_configs.get("text_config")
