"""Ways to recover what cutting cost, behind one interface: what a student is trained towards, and which of its weights.

Each is a change of ``DistillSettings``, so that all share one loop, one budget and one judge.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from seed.scoring.distillation import DistillSettings
from seed.scoring.objectives import Objective

LAST_LAYERS = 3  # as in arXiv 2411.15558, which trains the last three layers and the head
DEFAULT_LORA_RANK = 16
HIDDEN_WEIGHT = 1.0


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A way to train. ``apply`` takes settings of a study and the number of the student's layers."""

    name: str
    title: str
    source: str
    apply: Callable[[DistillSettings, int], DistillSettings]
    rate_factor: float = 1.0  # its learning rates beside those of training all weights


def _distill(settings: DistillSettings, num_layers: int) -> DistillSettings:
    return settings


def _match_states(settings: DistillSettings, num_layers: int) -> DistillSettings:
    return replace(settings, objective=replace(settings.objective, hidden_weight=HIDDEN_WEIGHT))


def _train_low_rank(settings: DistillSettings, num_layers: int) -> DistillSettings:
    return replace(settings, lora_rank=settings.lora_rank or DEFAULT_LORA_RANK)


def _pretrain(settings: DistillSettings, num_layers: int) -> DistillSettings:
    return replace(settings, objective=replace(settings.objective, ce_share=1.0))


def _train_last(settings: DistillSettings, num_layers: int) -> DistillSettings:
    frozen = max(settings.frozen_layers, num_layers - LAST_LAYERS)
    return replace(settings, frozen_layers=max(0, min(frozen, num_layers - 1)))


RECOVERIES = {
    recovery.name: recovery
    for recovery in (
        Recovery(name="distillation", title="distillation", source="arXiv 1503.02531", apply=_distill),
        Recovery(
            name="hidden-states", title="distillation and states", source="arXiv 1910.01108", apply=_match_states
        ),
        Recovery(
            name="lora",
            title="LoRA distillation",
            source="arXiv 2411.06839",
            apply=_train_low_rank,
            rate_factor=4.0,
        ),
        Recovery(name="pretraining", title="continued pretraining", source="arXiv 2402.02834", apply=_pretrain),
        Recovery(name="last-layers", title="last layers only", source="arXiv 2411.15558", apply=_train_last),
    )
}


def apply_recovery(
    name: str,
    settings: DistillSettings,
    *,
    num_layers: int,
    temperature: float = 1.0,
    ce_share: float = 0.0,
) -> DistillSettings:
    """Settings of a recovery of a student of so many layers; the objective's mixture is the study's."""
    mixed = replace(settings, objective=Objective(temperature=temperature, ce_share=ce_share))
    return RECOVERIES[name].apply(mixed, num_layers)
