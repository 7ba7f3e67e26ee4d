"""Ways to recover what cutting cost, behind one interface: what a student is trained towards, and which of its weights.

Data only, so that commands can name them at once; ``stages.budgets`` turns one into settings of the one training loop, so
that all share its budget, its data and its judge.
"""

from dataclasses import dataclass

LAST_LAYERS = 3  # as in arXiv 2411.15558, which trains the last three layers and the head
DEFAULT_LORA_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A way to train. ``rate_factor``: its learning rates beside those of training all weights by distillation."""

    name: str
    title: str
    source: str
    ce_share: float | None = None  # of cross-entropy in the objective; None: as the study mixes
    hidden_weight: float = 0.0  # of the distance of the layers' states to the dense model's at original places
    is_low_rank: bool = False
    last_layers: int | None = None  # only so many are trained, and what follows them
    rate_factor: float = 1.0


RECOVERIES = {
    recovery.name: recovery
    for recovery in (
        Recovery(name="distillation", title="distillation", source="arXiv 1503.02531"),
        Recovery(name="hidden-states", title="distillation, and states", source="arXiv 1910.01108", hidden_weight=1.0),
        Recovery(name="lora", title="LoRA distillation", source="arXiv 2411.06839", is_low_rank=True, rate_factor=4.0),
        Recovery(name="pretraining", title="continued pretraining", source="arXiv 2402.02834", ce_share=1.0),
        Recovery(
            name="lora-pretraining",
            title="LoRA on the text alone",
            source="arXiv 2402.02834",
            ce_share=1.0,
            is_low_rank=True,
            rate_factor=4.0,
        ),
        Recovery(name="last-layers", title="last layers only", source="arXiv 2411.15558", last_layers=LAST_LAYERS),
    )
}
