"""Full distillation: a frontier member in, an exported and judged checkpoint out.

The learning rate is tuned once for a study on a small share of the budget. Every step is resumable, and a
finished member is never done twice. Which members, the frontier decides.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from seed import folder
from seed.models.checkpoint import is_whole, load_checkpoint, write_checkpoint
from seed.models.surgery import cast_weights
from seed.optimize.space import drop_layers
from seed.records import Candidate, DenseResult, DistillResult, Latency, Quality, SearchPlan
from seed.reporting.card import write_card
from seed.scoring.distillation import Distilled, DistillSettings, tune_learning_rate
from seed.scoring.instruments import Instruments, exported_losses, size_of, start_student, train_student
from seed.scoring.latency import run_command
from seed.scoring.proxy import choose_start
from seed.scoring.quality import DocumentLosses, compare_models, judge, logits_of, measure_losses
from seed.scoring.refit import Refit
from seed.scoring.sweep import Sweep
from seed.stages.recovering import distill_settings
from seed.stages.workbench import Workbench, resolve_location

TUNING_SHARE = 10  # a rate is tried on one tenth of the budget


def count_steps(bench: Workbench, distill_tokens: int) -> int:
    """Whole steps of the protocol's batch that come closest to so many tokens."""
    return max(1, round(distill_tokens / (bench.batch_windows * bench.protocol.window_tokens)))


def full_settings(
    bench: Workbench,
    candidate: Candidate,
    *,
    distill_tokens: int,
    learning_rate: float,
    looks: int | None = None,
    rng_seed: int | None = None,
) -> DistillSettings:
    """Budget of a full distillation; looks at validation text are eight steps apart or more."""
    steps = count_steps(bench, distill_tokens)
    return distill_settings(
        bench,
        candidate,
        steps=steps,
        learning_rate=learning_rate,
        looks=looks or max(1, min(8, steps // 8)),
        rng_seed=rng_seed,
    )


def count_work(bench: Workbench, steps: int) -> float:
    """Work of one final in steps of its distillation: measuring the starts and judging the end count too."""
    validation, test = bench.streams["validation"].num_tokens, bench.streams["test"].num_tokens
    step_forwards = 3.3 * bench.batch_windows * bench.protocol.window_tokens
    return steps + (4 * validation + 2 * bench.protocol.calibration_tokens + 3 * test) / step_forwards


def judge_dense(bench: Workbench, instruments: Instruments, latency: Latency) -> DenseResult:
    """Judge the original on validation and test; read back when that was done before."""
    if bench.folder.dense.exists():
        return folder.read_record(bench.folder.dense, DenseResult)
    whole = drop_layers(bench.anatomy.num_layers, [])
    test = measure_losses(
        logits_of(bench.teacher.model), bench.streams["test"], micro_batch=bench.micro_batch, device=bench.device
    )
    result = DenseResult(
        validation=judge(instruments.dense_validation, instruments.dense_validation),
        test=judge(test, test),
        latency=msgspec.structs.replace(
            latency,
            structure="dense",
            median_ms=latency.dense_median_ms,
            p10_ms=latency.dense_median_ms,
            p90_ms=latency.dense_median_ms,
            ratio=1.0,
            ratio_low=1.0,
            ratio_high=1.0,
            prefill_ratio=1.0,
            prefill_median_ms=latency.prefill_median_ms / latency.prefill_ratio
            if latency.prefill_median_ms and latency.prefill_ratio
            else None,
        ),
        size=size_of(instruments, whole),
    )
    folder.write_record(bench.folder.dense, result)
    return result


def prepare_start(sweep: Sweep, candidate: Candidate) -> tuple[str, Refit | None]:
    """Measure both starts, raw and closed form, and return the better with its maps."""
    [raw] = sweep.measure_unrecovered([candidate])
    qualities = {"none": raw}
    if sweep.instruments.gains is not None:
        qualities["closed_form"] = sweep.measure(candidate)
    start = choose_start(qualities)
    refit = sweep.recover(candidate) if start == "closed_form" else None
    sweep.release_states()
    return start, refit


def choose_learning_rate(
    bench: Workbench,
    sweep: Sweep,
    candidate: Candidate,
    *,
    rates: tuple[float, ...],
    distill_tokens: int,
    on_step: Callable[[int], None],
) -> float:
    """Try each rate on a tenth of the budget and return the best; remembered in the study."""
    path = bench.folder.root / "learning_rate.json"
    key, chosen = f"{candidate.key}, {distill_tokens} tokens", f"{distill_tokens} tokens, {len(rates)} rates"
    known: dict[str, dict[str, float]] = folder.read_record(path, dict[str, dict[str, float]]) if path.exists() else {}
    if chosen in known:  # tuned once for a study, whichever candidate was the hardest then
        return known[chosen]["best"]
    losses = known.setdefault(key, {})
    instruments = sweep.instruments
    _, refit = prepare_start(sweep, candidate)

    def run(rate: float) -> float:
        if str(rate) in losses:
            return losses[str(rate)]
        tokens = max(1, distill_tokens // TUNING_SHARE)
        settings = full_settings(bench, candidate, distill_tokens=tokens, learning_rate=rate, looks=1)
        student = start_student(instruments, candidate, refit, settings=settings)
        went = train_student(instruments, student, settings, on_step=on_step)
        loss = went.curve[-1].validation_loss
        losses[str(rate)] = loss if math.isfinite(loss) else sys.float_info.max  # JSON knows no infinity
        folder.write_bytes(path, json.dumps(known, indent=1).encode())
        return losses[str(rate)]

    best, _ = tune_learning_rate(rates, run)
    known[chosen] = {"best": best}
    folder.write_bytes(path, json.dumps(known, indent=1).encode())
    return best


def distill_member(
    bench: Workbench,
    sweep: Sweep,
    plan: SearchPlan,
    dense: DenseResult,
    candidate: Candidate,
    *,
    trial_number: int | None,
    latency: Latency,
    settings: DistillSettings,
    eval_command: str | None,
    on_work: Callable[[float], None],
) -> DistillResult:
    """Distill, export and judge one candidate; return the finished result at once if there is one."""
    result_path, model_path = bench.folder.result(candidate.key), bench.folder.model(candidate.key)
    described = describe_settings(bench, settings)
    if result_path.exists() and is_whole(model_path):
        known = folder.read_record(result_path, DistillResult)
        if known.settings == described or int(known.settings["steps"]) > settings.steps:  # never undo a longer one
            on_work(count_work(bench, settings.steps))
            return _add_user_score(bench, known, eval_command)
    began = time.monotonic()
    around = (count_work(bench, settings.steps) - settings.steps) / 2
    instruments = sweep.instruments
    start, refit = prepare_start(sweep, candidate)
    on_work(around)
    finished = 0

    def report_step(step: int) -> None:
        nonlocal finished
        on_work(step - finished)
        finished = step

    student = start_student(instruments, candidate, refit, settings=settings)
    checkpoint = bench.folder.work / f"distill-{candidate.key}.pt"
    went = train_student(instruments, student, settings, checkpoint=checkpoint, on_step=report_step)
    provenance = {
        "seed": plan.seed_version,
        "base_model": bench.protocol.location,
        "base_revision": bench.protocol.commit or bench.protocol.revision,
        "num_layers": candidate.num_layers,
        "kept_layers": candidate.kept_layers,
        "dropped_layers": candidate.dropped_layers,
        "study": plan.name,
        "settings": described,
        "streams": msgspec.to_builtins(bench.protocol.streams),
    }
    write_checkpoint(
        student,
        model_path,
        tokenizer=bench.teacher.tokenizer,
        dtype=bench.teacher.stored_dtype,
        card="",
        provenance=provenance,
    )
    del student
    validation, test, unrecovered = judge_exported(bench, instruments, candidate)
    result = DistillResult(
        candidate=candidate,
        trial_number=trial_number,
        settings=described,
        curve=went.curve,
        start=start,
        best_step=went.best_step,
        validation=validation,
        test=test,
        test_unrecovered=unrecovered,
        latency=latency,
        size=size_of(instruments, candidate),
        seconds=time.monotonic() - began,
    )
    folder.write_bytes(model_path / "README.md", write_card(plan, bench.protocol, dense, result).encode())
    folder.write_record(result_path, result)
    checkpoint.unlink(missing_ok=True)
    on_work(around)
    return _add_user_score(bench, result, eval_command)


def distill_once(
    bench: Workbench,
    sweep: Sweep,
    candidate: Candidate,
    settings: DistillSettings,
    *,
    on_step: Callable[[], None],
) -> tuple[Distilled, DocumentLosses, float]:
    """Distill from the better start and judge the best weights on test text; nothing is kept. Seconds come last."""
    began = time.perf_counter()
    _, refit = prepare_start(sweep, candidate)
    student = start_student(sweep.instruments, candidate, refit, settings=settings)
    went = train_student(sweep.instruments, student, settings, on_step=lambda step: on_step())
    test = exported_losses(sweep.instruments, student, bench.streams["test"])
    return went, test, time.perf_counter() - began


def judge_exported(
    bench: Workbench, instruments: Instruments, candidate: Candidate
) -> tuple[Quality, Quality, Quality]:
    """Judge the checkpoint as it lies on disk: validation, test, and test of the same layers without recovery."""
    exported = load_checkpoint(bench.folder.model(candidate.key), device=bench.device, dtype=bench.dtype)
    losses = measure_losses(
        logits_of(exported), instruments.validation, micro_batch=bench.micro_batch, device=bench.device
    )
    validation = judge(losses, instruments.dense_validation)
    raw = cast_weights(start_student(instruments, candidate, None), bench.dtype)
    dense, [(test, closeness), (unrecovered, raw_closeness)] = compare_models(
        logits_of(bench.teacher.model),
        [logits_of(exported), logits_of(raw)],
        bench.streams["test"],
        micro_batch=bench.micro_batch,
        device=bench.device,
    )
    return validation, judge(test, dense, closeness=closeness), judge(unrecovered, dense, closeness=raw_closeness)


def describe_settings(bench: Workbench, settings: DistillSettings) -> dict[str, str | int | float]:
    """What decides a distillation, for people and for knowing a finished one again."""
    batch_tokens = settings.batch_windows * bench.protocol.window_tokens
    return {
        "distill_tokens": settings.steps * batch_tokens,
        "steps": settings.steps,
        "batch_tokens": batch_tokens,
        "learning_rate": settings.learning_rate,
        "rng_seed": settings.rng_seed,
        "trained": describe_trained(settings),
        "loss": "forward KL to the dense model, temperature 1",
    }


def describe_trained(settings: DistillSettings) -> str:
    """Which weights a distillation trains, in words."""
    what = "all weights" if settings.lora_rank is None else f"LoRA of rank {settings.lora_rank}"
    behind = " behind the first cut" if settings.frozen_layers else ""
    return f"{what}{behind}, {'bfloat16 around float32' if settings.mixed_precision else 'float32'}"


def score_dense_for_user(bench: Workbench, dense: DenseResult, eval_command: str | None) -> DenseResult:
    """Let the user's own command judge the original, where it lies in a directory of this machine."""
    if eval_command is None or dense.user_command == eval_command:
        return dense
    location = resolve_location(bench.protocol.location)
    if not location.is_dir():  # a hub model: the cache holds it as a directory
        from huggingface_hub import snapshot_download

        location = Path(
            snapshot_download(bench.protocol.location, revision=bench.teacher.commit, local_files_only=True)
        )
    scored = msgspec.structs.replace(dense, user_score=run_command(eval_command, location), user_command=eval_command)
    folder.write_record(bench.folder.dense, scored)
    return scored


def _add_user_score(bench: Workbench, result: DistillResult, eval_command: str | None) -> DistillResult:
    if eval_command is None or result.user_command == eval_command:
        return result
    score = run_command(eval_command, bench.folder.model(result.candidate.key))
    scored = msgspec.structs.replace(result, user_score=score, user_command=eval_command)
    folder.write_record(bench.folder.result(result.candidate.key), scored)
    return scored
