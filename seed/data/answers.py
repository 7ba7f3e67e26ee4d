"""A model's own answers to a user's prompts as recovery text: ``self:prompts.jsonl``.

A model that is recovered on text of another kind than it writes itself forgets how it answers. Answers are sampled once for
a model and its prompts, a batch at a time, into a JSONL file among the hub's assets, and read like any other text from there on.
"""

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import nn

from seed.data.text_files import read_files
from seed.errors import CorpusError, ResourceError
from seed.records import hash_text

NEW_TOKENS = 512  # of an answer, at most
TOP_P = 0.95
BATCH = 16


def read_prompts(source: str, tokenizer: Any, *, longest: int) -> list[list[int]]:
    """Return the prompts of a source as tokens: rows with ``text`` to be gone on with, or chat ``messages`` to be answered.

    Args:
        source: a file or a folder.
        tokenizer: the model's.
        longest: tokens that the model reads at once.

    Raises:
        CorpusError: it is not there, holds no prompt, or one that leaves no room for an answer.
    """
    texts, _ = read_files(source, tokenizer, as_prompts=True)
    prompts = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    for number, prompt in enumerate(prompts, 1):
        if not 0 < len(prompt) < longest:
            raise CorpusError(
                f"{source}: prompt {number:,} is of {len(prompt):,} tokens, and the model reads 1 to {longest - 1:,} before it answers. "
                "Leave it out, or cut it."
            )
    if not prompts:
        raise CorpusError(f"{source}: no prompt there. Wanted rows with 'text' or chat 'messages', a prompt each.")
    return prompts


def write_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    version: str,
    longest: int,
    on_answers: Callable[[int], None],
) -> Path:
    """Let a model answer every prompt, and return the file that holds prompts with answers; what was answered before stays.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        prompts: as tokens.
        version: of the model, a commit of the hub or a hash of its weights; the file is of this model and these prompts.
        longest: tokens that the model reads and writes in all.
        on_answers: is told how many answers are there now.

    Raises:
        ResourceError: the file cannot be written.
    """
    place = Path(constants.HF_ASSETS_CACHE) / "seed" / "answers"
    path = place / f"{hash_text(repr((version, prompts, longest, NEW_TOKENS, TOP_P, BATCH)))}.jsonl"
    if path.is_file():
        on_answers(len(prompts))
        return path
    begun = path.with_suffix(".part")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with begun.open("a+", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # of several processes one writes, and the others wait
            if path.is_file():
                return path
            lines = begun.read_bytes().splitlines(keepends=True)
            done = (
                sum(line.endswith(b"\n") for line in lines) // BATCH * BATCH
            )  # a killed process may have torn the last
            handle.truncate(sum(map(len, lines[:done])))
            on_answers(done)
            for start in range(done, len(prompts), BATCH):
                batch = prompts[start : start + BATCH]
                for prompt, answer in zip(batch, sample(model, batch, longest=longest, rng_seed=start), strict=True):
                    handle.write(json.dumps({"text": spell(tokenizer, [*prompt, *answer])}) + "\n")
                handle.flush()
                on_answers(len(batch))
            os.fsync(handle.fileno())
            begun.replace(path)
    except OSError as error:
        raise ResourceError(
            f"{place}: cannot be written ({error.strerror or error}), and the model's answers are kept there. "
            "Name a place with HF_ASSETS_CACHE=DIRECTORY."
        ) from error
    return path


@torch.inference_mode()
def sample(model: nn.Module, prompts: Sequence[Sequence[int]], *, longest: int, rng_seed: int) -> list[list[int]]:
    """Return what a model answers to each of some prompts, up to the token that ends it, which is left out."""
    config: Any = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    tokens_BT = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    mask_BT = torch.zeros_like(tokens_BT)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, width - len(prompt) :] = 1
    generate: Any = model.generate
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(rng_seed)
        written_BT = generate(
            input_ids=tokens_BT,
            attention_mask=mask_BT,
            do_sample=True,
            top_p=TOP_P,
            max_new_tokens=min(NEW_TOKENS, longest - width),
            pad_token_id=0 if ends[0] is None else ends[0],
        )
    answers = written_BT[:, width:].tolist()
    stops = [next((at for at, token in enumerate(answer) if token in ends), len(answer)) for answer in answers]
    return [answer[:stop] for answer, stop in zip(answers, stops, strict=True)]


def spell(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of tokens, those of a chat's turns in their own spelling, so that it is read back as the same tokens."""
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
