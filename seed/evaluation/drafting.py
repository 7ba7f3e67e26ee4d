"""Speculative decoding with a model as the draft of its dense model: the same tokens, and how much sooner they come."""

import math
import time
from typing import Any

import numpy as np
import torch

from seed.errors import ModelError, first_line
from seed.records import DraftTiming, Estimate
from seed.stats import estimate_pairs
from seed.study_dir import is_out_of_memory

ROUNDS = 4  # in which each prompt is continued by both


@torch.inference_mode()
def time_draft(dense: Any, draft: Any, prompts_BT: torch.Tensor, *, new_tokens: int, tokens_ahead: int) -> DraftTiming:
    """Let the dense model continue prompts greedily, alone and with the draft, in turns; by transformers' assisted generation.

    Args:
        dense: the dense model.
        draft: that guesses; both of one vocabulary.
        prompts_BT: beginnings, continued one by one.
        new_tokens: that each is continued by.
        tokens_ahead: guessed at a time.

    Raises:
        ModelError: transformers cannot use this family so.
    """
    draft.generation_config.num_assistant_tokens = tokens_ahead
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0  # always so many
    logs_PR: list[list[float]] = [[] for _ in prompts_BT]
    num_same = 0
    try:
        for turn in range(ROUNDS + 1):
            for prompt_T, logs_R in zip(prompts_BT, logs_PR, strict=True):
                found = {
                    assistant is None: _continue(
                        dense, prompt_T[None], new_tokens=new_tokens, assistant_model=assistant
                    )
                    for assistant in ((None, draft) if turn % 2 else (draft, None))
                }
                (alone, alone_seconds), (assisted, assisted_seconds) = found[True], found[False]
                if turn:
                    logs_R.append(math.log(alone_seconds / assisted_seconds))
                else:  # warms up
                    num_same += torch.equal(alone, assisted)
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"--draft: transformers cannot let this {dense.config.model_type} model be drafted for ({first_line(error)}). Leave --draft out."
        ) from error
    mean, half = estimate_pairs(np.array(logs_PR).mean(axis=1))
    ends = (None, None) if half is None else (math.exp(mean - half), math.exp(mean + half))
    return DraftTiming(
        tokens_ahead=tokens_ahead,
        new_tokens=new_tokens,
        prompts=len(prompts_BT),
        same=num_same,
        speedup=Estimate(value=math.exp(mean), low=ends[0], high=ends[1]),
    )


def _continue(
    model: Any, prompt_BT: torch.Tensor, *, new_tokens: int, assistant_model: Any
) -> tuple[torch.Tensor, float]:
    begin = time.perf_counter()
    tokens = model.generate(
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        assistant_model=assistant_model,
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
    )
    if prompt_BT.device.type == "cuda":
        torch.cuda.synchronize()
    return tokens, time.perf_counter() - begin
