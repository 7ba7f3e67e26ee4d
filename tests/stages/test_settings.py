"""Settings: what is wrong or contradicts itself is refused at once, by its flag."""

import dataclasses
import math
from typing import Any

import pytest

from seed.errors import SeedError, StudyError
from seed.optimize.sampler import SAMPLERS
from seed.stages.settings import SearchSettings, Stages, parse_stages


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"trials": 0}, "--trials 0"),
        ({"trials": -5}, "--trials -5"),
        ({"max_ppl_ratio": math.nan}, "--max-ppl-ratio nan"),
        ({"max_ppl_ratio": math.inf}, "--max-ppl-ratio inf"),
        ({"max_ppl_ratio": 1.0}, "--max-ppl-ratio 1.0"),
        ({"max_ppl_ratio": 0.9}, "--max-ppl-ratio 0.9"),
        ({"max_latency_ratio": 1.0}, "--max-latency-ratio 1.0"),
        ({"max_latency_ratio": 1.2}, "--max-latency-ratio 1.2"),
        ({"max_latency_ratio": 0.0}, "--max-latency-ratio 0.0"),
        ({"max_latency_ratio": math.nan}, "--max-latency-ratio nan"),
        ({"max_memory": 0.0}, "--max-memory 0.0"),
        ({"rung": 0}, "--rung 0"),
        ({"rung": 3}, "--rung 3"),
        ({"sampler": "grid"}, "--sampler grid"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"rng_seed": -1}, "--rng-seed -1"),
        ({"rng_seed": 2**63}, "--rng-seed 9223372036854775808"),
        ({"model": ""}, "--model"),
        ({"study": " "}, "--study"),
        ({"recovery_text": ""}, "--recovery-text"),
        ({"test_text": "\t"}, "--test-text"),
        ({"device": ""}, "--device"),
        ({"storage": ""}, "--storage"),
        ({"studies_dir": ""}, "--studies-dir"),
        ({"eval_command": ""}, "--eval-command"),
        ({"recovery_text": "caf\udce9.txt"}, "--recovery-text caf\udce9.txt"),
        ({"frontier_size": 0}, "--frontier-size 0"),
        ({"max_dropped": 0}, "--max-dropped 0"),
        ({"short_steps": 0}, "--short-steps 0"),
        ({"learning_rate": -1e-4}, "--learning-rate -0.0001"),
        ({"distill_tokens": 0}, "--distill-tokens 0"),
        ({"window_tokens": 0}, "--window-tokens 0"),
        ({"validation_tokens": -1}, "--validation-tokens -1"),
        ({"latency_repeats": 0}, "--latency-repeats 0"),
        ({"latency_batch": 0}, "--latency-batch 0"),
        ({"new_tokens": 0}, "--new-tokens 0"),
        ({"sweep_budget": -1}, "--sweep-budget -1"),
        ({"sweep_budget": math.nan}, "--sweep-budget nan"),
        ({"sweep_budget": math.inf}, "--sweep-budget inf"),
        ({"lora_rank": 0}, "--lora-rank 0"),
        ({"lora_rank": 8, "recovery": "pretraining"}, "--lora-rank 8"),
        ({"replicas": 0}, "--replicas 0"),
        ({"recovery": "magic"}, "--recovery magic"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"temperature": 2.0, "recovery": "pretraining"}, "--temperature 2.0"),
        ({"ce_share": 1.5}, "--ce-share 1.5"),
        ({"ce_share": -0.1}, "--ce-share -0.1"),
        ({"ce_share": 0.5, "recovery": "lora-pretraining"}, "--ce-share 0.5"),
        ({"min_dropped": 3, "max_dropped": 2}, "--min-dropped 3"),
        ({"stages": "2+"}, "--stages 2+"),
        ({"stages": "two"}, "--stages two"),
        ({"stages": "0+1"}, "--stages 0+1"),
        ({"stages": "..."}, "--stages ..."),
        ({"stages": "1+...+1"}, "--stages 1+...+1"),
        ({"stages": "1+..."}, "--stages 1+..."),
        ({"stages": "2+1", "max_dropped": 3}, "--max-dropped"),
        ({"stages": "2+1", "start": "/models/drop-1"}, "--start"),
        ({"stages": "2+1", "storage": "sqlite:///x.db"}, "--storage"),
        ({"stages": "2+1", "distill": False}, "--no-distill"),
        ({"one_shot": False}, "--no-one-shot"),
        ({"replicas": 3, "distill": False}, "--replicas 3"),
        ({"width_baseline": True, "distill": False}, "--width-baseline"),
        ({"width_baseline": True, "start": "/models/drop-1"}, "--width-baseline"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(SeedError) as caught:
        SearchSettings(**settings)
    assert str(caught.value).startswith(f"{flag}: ")
    assert "\n" not in str(caught.value)


def test_what_can_be_chosen_is_listed() -> None:
    with pytest.raises(SeedError, match=", ".join(SAMPLERS)):
        SearchSettings(sampler="grid")
    with pytest.raises(SeedError, match="float32, bfloat16, float16"):
        SearchSettings(dtype="int8")


def test_a_password_in_the_storage_is_refused_and_never_repeated() -> None:
    with pytest.raises(StudyError, match="--storage") as caught:
        SearchSettings(storage="postgresql://me:hunter2@host/studies")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rng_seed": 0},
        {"rung": 1},
        {"rung": 2},
        {"max_ppl_ratio": 1.0001},
        {"sweep_budget": 0},
        {"sweep_budget": 0.5},
        {"lora_rank": 1},
        {"lora_rank": 1, "recovery": "lora-pretraining"},
        {"ce_share": 0.0},
        {"ce_share": 1.0},
        {"stages": "3"},
        {"stages": "2+1", "max_latency_ratio": 0.8},
        {"stages": "1+...", "max_ppl_ratio": 1.1},
        {"min_dropped": 2, "max_dropped": 2},
        {"max_latency_ratio": 0.9999},
        {"storage": "postgresql://me@host/studies"},
    ],
)
def test_settings_at_the_border_pass(settings: dict[str, Any]) -> None:
    assert SearchSettings(**settings)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SearchSettings().trials = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "settings",
    [{"compiled": True, "latency_command": "time.sh"}, {"distill": False, "eval_command": "judge.sh"}],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SeedError, match="Leave one out"):
        SearchSettings(**settings)


def test_stages_are_numbers_of_layers_and_may_go_on() -> None:
    assert parse_stages("2+1") == Stages(counts=(2, 1), goes_on=False)
    assert parse_stages("3 + 1 + ...") == Stages(counts=(3, 1), goes_on=True)


@pytest.mark.parametrize(
    ("settings", "recovery"),
    [({}, "distillation"), ({"lora_rank": 8}, "lora"), ({"recovery": "last-layers"}, "last-layers")],
)
def test_a_rank_alone_asks_for_low_rank_updates(settings: dict[str, Any], recovery: str) -> None:
    assert SearchSettings(**settings).chosen_recovery.name == recovery
