"""What stands beside weights and goes along with whatever is cut out of them, by names alone."""

import shutil
from pathlib import Path

# Tokenizers of all kinds, how to generate, how pictures are prepared, and what a licence wants to go along; patterns of
# paths, as the hub and pathlib both read them.
TOKENIZERS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "tekken.json",
)
COMPANIONS = (
    *TOKENIZERS,
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)


def copy_companions(original: Path, target: Path) -> None:
    """Copy what stands beside an original's weights byte for byte, over what lies in ``target``; links are followed."""
    for pattern in COMPANIONS:
        for path in original.glob(pattern):
            copy = target / path.relative_to(original)
            if path.is_file():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)


def read_companions(original: Path) -> dict[str, bytes]:
    """The files that stand beside an original's weights, its config with them, by their name."""
    found = [path for pattern in ("config.json", *COMPANIONS) for path in original.glob(pattern) if path.is_file()]
    return {path.relative_to(original).as_posix(): path.read_bytes() for path in found}


def has_tokenizer(original: Path) -> bool:
    """Do a tokenizer's files stand beside an original's weights?"""
    return any(path.is_file() for pattern in TOKENIZERS for path in original.glob(pattern))
