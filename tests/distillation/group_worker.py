"""Trains small students as one process of several: torchrun group_worker.py CASES.json DIRECTORY

The first process writes what came of each case, every process how its models were sharded.
"""

import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seed import interrupts
from seed.distillation import fsdp, loop
from seed.distillation.loop import DistillSettings
from seed.distillation.losses import Objective
from seed.distillation.processes import SINGLE_PROCESS, SingleProcess
from seed.evaluation.perplexity import DocumentLosses, logits_of, measure_losses
from seed.models.anatomy import Anatomy
from seed.models.surgery import cast_weights
from seed.proxy.instruments import Instruments, make_job, start_student, train_students
from seed.records import Candidate
from tests.models.families import make_model
from tests.proxy.streams import draw_stream, write_stream

CUTS = ((0, 3), (0, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained: ``num_students`` of the ``CUTS``, on so many windows a step."""

    name: str
    family: str = "llama"
    steps: int = 4
    batch_windows: int = 4
    micro_batch: int = 2
    ce_share: float = 0.0
    mixed_precision: bool = False
    recomputes: bool = False
    frozen_layers: int = 0
    stored: str = "float32"
    dense: str = "float32"
    num_students: int = 1
    checkpoint: str | None = None
    kill_at: int | None = None  # step at which the first process dies
    stop_at: int | None = None  # step at which the last process is asked to stop

    @property
    def settings(self) -> DistillSettings:
        return DistillSettings(
            steps=self.steps,
            batch_windows=self.batch_windows,
            micro_batch=self.micro_batch,
            learning_rate=1e-3,
            rng_seed=0,
            looks=2,
            objective=Objective(ce_share=self.ce_share),
            mixed_precision=self.mixed_precision,
            recomputes=self.recomputes,
            frozen_layers=self.frozen_layers,
        )


def train(case: Case, processes: SingleProcess = SINGLE_PROCESS) -> list[dict[str, Any]]:
    """Train a case's students; what came of each."""
    torch.manual_seed(0)  # Mamba draws some weights itself
    model = make_model(case.family)
    validation = write_stream(model, 31, 16, rng_seed=2)
    cast_weights(model, getattr(torch, case.dense))
    losses = measure_losses(logits_of(model), validation, micro_batch=4, device=torch.device("cpu"))
    instruments = Instruments(
        anatomy=Anatomy(model),
        calibration=validation,
        recovery=draw_stream(18, 16, rng_seed=1),
        validation=validation,
        dense_validation=DocumentLosses(sums=losses.sums, counts=losses.counts),
        gains=None,
        micro_batch=4,
        stored_dtype=getattr(torch, case.stored),
        processes=processes,
    )
    if not processes.leads:  # what others have does not count
        model = fsdp.empty(model)
        instruments = dataclasses.replace(instruments, anatomy=Anatomy(model))
    candidates = [Candidate.keep(num_layers=4, kept_layers=cut) for cut in CUTS[: case.num_students]]
    jobs = [
        make_job(
            instruments,
            start_student(instruments, candidate, None),
            case.settings,
            candidate=candidate,
            checkpoint=None if case.checkpoint is None else Path(f"{case.checkpoint}-{place}"),
        )
        for place, candidate in enumerate(candidates)
    ]

    steps: list[int] = []

    def on_step(step: int) -> None:
        steps.append(step)
        if step == case.stop_at and processes.rank == processes.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == case.kill_at and processes.leads:
            os.kill(os.getpid(), signal.SIGKILL)

    outcome = train_students(instruments, jobs, on_step=on_step)
    if not processes.leads:
        assert all(weight.is_meta for job in jobs for weight in job.student.parameters())
        return []
    return [
        {
            "losses": [point.validation_loss for point in one.curve],
            "divergences": [point.kl_divergence for point in one.curve[1:]],
            "best_step": one.best_step,
            "steps": steps,
            "weights": {name: weight.clone() for name, weight in job.student.named_parameters()},
            "is_frozen": not any(weight.requires_grad for weight in job.student.parameters()),
        }
        for one, job in zip(outcome, jobs, strict=True)
    ]


def main(cases: Path, directory: Path) -> None:
    torch.set_num_threads(1)
    wanted = [Case(**words) for words in json.loads(cases.read_text())]
    if all(case.stop_at is None for case in wanted):
        loop.CHECKPOINT_SECONDS = loop.SAVING_SHARE = -1.0  # progress is saved at every step
    shard, shards = fsdp.shard, []

    def watch(*args: Any, **kwargs: Any) -> Any:
        model = shard(*args, **kwargs)
        weights = list(model.parameters())
        shards.append(
            {
                "all_sharded": all(isinstance(weight, fsdp.DTensor) for weight in weights),
                "whole": sum(weight.numel() for weight in weights),
                "here": sum(weight.to_local().numel() for weight in weights),
            }
        )
        return model

    fsdp.shard = watch
    interrupts.listen()
    with fsdp.join_processes() as processes:
        results = {}
        for case in wanted:
            results[case.name] = train(case, processes)
            if processes.leads:
                torch.save(results, directory / "results.pt")
    (directory / f"shards-{processes.rank}.json").write_text(json.dumps(shards))


def write_cases(path: Path, cases: list[Case]) -> Path:
    path.write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
    return path


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
