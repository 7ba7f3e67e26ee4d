"""The report: one HTML file that answers first, then shows how the answer came about; and its figures and a note in Optuna Dashboard.

The page's script (``page.js``) draws the table of all trials, so that thousands of them open at once, and links it with figures.
"""

import dataclasses
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import plotly.graph_objects as go

from seed import study_dir
from seed.evidence import StudyRecord
from seed.plans import SearchPlan
from seed.records import DistillResult, TaskScore, TrialRecord
from seed.reporting.card import render_markdown
from seed.reporting.document import prepare_figure, render
from seed.reporting.figures import draw_gallery
from seed.reporting.result_text import (
    Table,
    describe_certainty,
    describe_equivalence,
    describe_worth,
    explain_none,
    list_model,
    list_models,
    list_tasks,
    make_table,
    write_result,
)
from seed.reporting.wording import (
    describe_drafting,
    describe_gguf,
    format_bytes,
    format_count,
    format_interval,
    format_number,
    list_dropped,
    name_proxy,
)
from seed.results import (
    MARGINS,
    Model,
    StudyResult,
    choose_metrics,
    expect_drafting,
    read_difference,
    recommend,
    recommend_faster,
)
from seed.study_dir import StudyFolder

MOST_TRIALS = 1000  # in one figure of the dashboard: 80 bytes each; its own plots show every one
HEIGHT_PX = 440  # what a card of the dashboard shows without cutting it off
# what a reader may accept: per cent of PPL, and times faster
LOSSES = (*range(11), 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
SPEEDUPS = [1 + step / 20 for step in range(181)]


def write_page(result: StudyResult, path: Path) -> None:
    """Write the report of a study as one self-contained HTML file; sections for which it has nothing are left out.

    Raises:
        ResourceError: the file cannot be written.
    """
    study_dir.write_bytes(path, render_page(result, root=path.parent).encode())


def render_page(result: StudyResult, *, root: Path) -> str:
    """Return the report as HTML. The same result gives the same bytes. ``root``: the study's folder."""
    record = result.record
    stops = {"loss": list_losses(result), "speed": list_speeds(result)}
    shown = {stop["id"] for stop in (*stops["loss"], *stops["speed"])}
    return render(
        "report.html",
        result=result,
        record=record,
        start=LOSSES.index(MARGINS[-1]),
        first=stops["loss"][LOSSES.index(MARGINS[-1])],
        picks=[describe_pick(model, result, root=root) for model in result.best if model.key in shown],
        figures={key: prepare_figure(figure, key=key) for key, figure in draw_gallery(result).items()},
        depths=sorted({trial.evaluation.candidate.num_dropped for trial in record.trials}),
        states=sorted({trial.state.lower() for trial in record.trials}),
        settings=list_settings(record),
        data={"stops": stops, **gather_data(record)},
        worth=describe_worth(record.gain) if record.gain else "",
        models=make_table(list_models(result)),
        distillations=tabulate_distillations(record.distilled),
        tasks=make_table(list_tasks(result)),
    )


# ---- which model to ship
# a position of the slider: what it asks for, the key of the model that it leads to, and how sure that is
Stop = dict[str, object]


def list_losses(result: StudyResult) -> list[Stop]:
    """Return the fastest model within each loss of perplexity that a reader may accept, up to what all models keep."""
    worst = max((100 * (model.ppl_ratio.value or 1) - 100 for model in result.best), default=0.0)
    most = next((loss for loss in LOSSES if loss >= max(worst, MARGINS[-1])), LOSSES[-1])
    stops: list[Stop] = []
    for loss in (loss for loss in LOSSES if loss <= most):
        found = recommend(result.best, margin=loss)
        told = describe_certainty(found) if found.chosen else explain_none(found, result)
        key, asks = found.chosen and found.chosen.key, f"up to {loss}\u00a0% more perplexity"
        stops.append({"asks": asks, "id": key, "isSure": found.is_sure, "certainty": told})
    return stops


def list_speeds(result: StudyResult) -> list[Stop]:
    """Return the model that loses least at each speed-up that a reader may want, as far as there is one."""
    stops: list[Stop] = []
    for speedup in SPEEDUPS:
        found = recommend_faster(result.best, speedup=speedup)
        if found is None:
            break
        low, high = found.latency.ratio_low, found.latency.ratio_high
        is_sure, told = high is not None and high * speedup <= 1, "timed too few times to tell how sure that is"
        if low and high:
            told = f"95\u00a0% interval {1 / high:.2f} to {1 / low:.2f} times faster, {'all' if is_sure else 'not all'} of it as fast"
        asks = f"at least {speedup:.2f} times faster"
        stops.append({"asks": asks, "id": found.key, "isSure": is_sure, "certainty": told})
    return stops


def describe_pick(model: Model, result: StudyResult, *, root: Path) -> dict[str, object]:
    """Return what the page says of a model that may be shipped: its figures, those that are as good, and how to load it."""
    record, theirs, size = result.record, result.record.dense.user_score, model.size
    cells = list_model(model, record.dense)
    compared = "" if theirs is None else f"dense model {theirs:g}"
    text = "test text" if model.is_distilled else f"validation text, {name_proxy(record.frontier.proxy)} only"
    return {
        "model": model,
        "facts": [
            ("speed", cells["speed [95 %]"], describe_pace(model, record)),
            (f"perplexity, {text}", cells["PPL [95 %]"], describe_loss(model, record)),
            (
                "size",
                cells["size"],
                f"{format_count(size.num_params)} parameters; KV cache {format_bytes(size.kv_bytes_per_token)} a token",
            ),
            *list_draft(model),
            *map(describe_task, choose_metrics(model.tasks)),
            *([("your score", cells["yours"], compared)] if cells["yours"] else []),
        ],
        "continued": list_continuations(model, result),
        "beside": [describe_equivalence(one, result) for one in record.equivalences if one.other == model.key],
        "loaders": list_loaders(model, result, root=root),
    }


def list_draft(model: Model) -> list[tuple[str, str, str]]:
    """Return what a model gains as a draft of the dense model, where that is expected of it."""
    found, accepted = expect_drafting(model.quality.acceptance, model.latency), model.quality.acceptance
    if accepted is None or found is None or not found.tokens_ahead:
        return []
    more = (
        f"the dense model accepts {100 * accepted:.0f}\u00a0% of what it samples, and writes what it would have written"
    )
    return [("as a draft", describe_drafting(found), more)]


def describe_task(score: TaskScore) -> tuple[str, str, str]:
    """Return a task, its score, and how that lies to the dense model's."""
    added = "" if score.difference is None else f"; {format_interval(read_difference(score), '+.4f')}"
    dense = "" if score.dense_value is None else f"dense model {score.dense_value:.4f}"
    return f"{score.task}, {score.metric}", f"{score.value:.4f}", f"{dense}{added}"


def describe_pace(model: Model, record: StudyRecord) -> str:
    """Return how fast a model is in tokens and milliseconds, beside the dense one."""
    protocol, dense_ms = record.plan.protocol, record.dense.latency.median_ms
    paces = []
    for ms in (model.latency.ratio * dense_ms, dense_ms):
        rate = 1000 * protocol.latency_batch * protocol.new_tokens / ms
        tokens = "" if protocol.latency_command else f"{format_number(rate, places=int(rate < 100))} tokens/s, "
        paces.append(f"{tokens}{format_number(ms, places=1)} ms")
    return f"{paces[0]}; dense model {paces[1]}"


def describe_loss(model: Model, record: StudyRecord) -> str:
    """Return a model's perplexity beside the dense one's, and what recovery did for it."""
    dense = record.dense.judged if model.is_distilled else record.dense.validation
    told = f"PPL {format_number(model.quality.perplexity, places=2)}; dense model {format_number(dense.perplexity, places=2)}"
    if model.unrecovered is not None and model.unrecovered != model.quality.ppl_ratio:
        told += f"; {100 * model.unrecovered - 100:+.0f}\u00a0% without recovery"
    if model.num_distilled > 1:
        told += f"; mean of {model.num_distilled} distillations, of which the first is exported"
    return told


def list_continuations(model: Model, result: StudyResult) -> list[tuple[str, str, str]]:
    """Return what the dense model and this one write after the same prompts, where both were asked."""
    dense = result.record.dense
    written = next((one.continuations for one in result.record.distilled if one.key == model.key), ())
    return list(zip(dense.prompts, dense.continuations, written, strict=False))


def list_loaders(model: Model, result: StudyResult, *, root: Path) -> list[tuple[str, str]]:
    """Return the lines that load a model, by what loads it; of one that is not distilled, the line that does that."""
    if not model.is_distilled:
        members = result.record.frontier.members
        [number] = [one.trial_number for one in members if one.evaluation.candidate.key == model.key]
        return [("distil and export it", f"python -m seed.distill {shlex.quote(str(root))} --trial {number}")]
    path, trusts = str(root / "models" / model.key), result.record.plan.protocol.trust_remote_code
    name, typed, word = json.dumps(path), shlex.quote(path), " --trust-remote-code" * trusts
    option = ", trust_remote_code=True" * trusts
    if model.candidate.lacking:  # other programs read it, too, and save nothing by what is gone
        out = shlex.quote(f"{model.key}-mlx")
        return [
            ("Python", f"import seed\nmodel = seed.load({name})"),
            (
                "MLX",
                f'python -m seed.export {typed} --format mlx --out {out}\nmlx_lm.generate --model {out} --prompt "Once upon a time"',
            ),
        ]
    return [
        (
            "transformers",
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"path = {name}\n"
            f'model = AutoModelForCausalLM.from_pretrained(path, dtype="auto"{option})\n'
            f"tokenizer = AutoTokenizer.from_pretrained(path{option})",
        ),
        ("vLLM", f"vllm serve {typed}{word}"),
        (
            "llama.cpp",
            f"python convert_hf_to_gguf.py {typed} --outfile {model.key}.gguf\nllama-cli -m {model.key}.gguf",
        ),
        ("MLX", f'mlx_lm.generate --model {typed} --prompt "Once upon a time"{word}'),
    ]


# ---- how it was measured


def list_settings(record: StudyRecord) -> dict[str, object]:
    """Return how everything was measured, by title; but for the address of the storage, which may hold a password."""
    plan = msgspec.to_builtins(record.plan)
    protocol = plan.pop("protocol")
    if types := protocol.pop("gguf_types", None):
        protocol["gguf"] = describe_gguf(types)
    told = {name: value for name, value in plan.items() if name not in ("storage", "command")}
    return {
        "Study": {**told, "fingerprint": record.plan.fingerprint, **Counter(trial.state for trial in record.trials)},
        "Protocol: what decides the meaning of the numbers": protocol,
        "Environment: versions and hardware": msgspec.to_builtins(record.environment),
    }


def tabulate_distillations(results: Sequence[DistillResult]) -> Table:
    """Return the table of how each model was distilled."""
    rows: list[dict[str, str | None]] = [
        {
            "without layers": list_dropped(one.candidate),
            "start": name_proxy(one.start),
            "kept step": f"{one.best_step:,}",
            "seconds": f"{one.seconds:,.0f}",
            **{key.replace("_", " "): str(value) for key, value in one.settings.items()},
        }
        for one in results
    ]
    return make_table(rows, title="How each was distilled.")


# ---- all trials


def gather_data(record: StudyRecord) -> dict[str, object]:
    """Return what the page's script reads of the trials; a column in which no row has anything is left out."""
    tests = {one.candidate.key: one.test.ppl_ratio for one in record.distilled}
    rows = [list_trial(trial, proxy=record.frontier.proxy, tests=tests) for trial in record.trials]
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
    return {
        "file": f"{record.plan.name}-trials.csv",
        "columns": columns,
        "table": [[row[name] for name in columns] for row in rows],
    }


def list_trial(trial: TrialRecord, *, proxy: str, tests: Mapping[str, float]) -> dict[str, object]:
    """Return a trial's cells by column, what decides in front. ``tests``: PPL ratios of distilled models by key."""
    evaluation, latency = trial.evaluation, trial.evaluation.latency
    qualities = {} if trial.state == "FAIL" else evaluation.qualities
    quality, raw = qualities.get(proxy), qualities.get("none")
    return {
        "dropped layers": [int(part) if part.isdigit() else part for part in evaluation.candidate.parts],
        "latency ratio": _round(latency.ratio),
        f"PPL ratio, validation ({name_proxy(proxy)})": _round(quality.ppl_ratio if quality else None),
        "PPL ratio, test (distilled)": _round(tests.get(evaluation.candidate.key)),
        "PPL ratio, validation (unrecovered)": _round(raw.ppl_ratio if raw else None),
        "standard error (validation)": _round(quality.ppl_ratio_standard_error if quality else None),
        "how many": evaluation.candidate.num_dropped,
        "latency from": _round(latency.ratio_low),
        "latency to": _round(latency.ratio_high),
        "parameters": evaluation.size.num_params,
        "seconds": _round(evaluation.seconds),
        "state": trial.state.lower(),
        "trial": trial.number,
        "no value because": evaluation.skipped_because or evaluation.explain_failure(proxy),
    }


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)  # JSON knows no other numbers


# ---- in Optuna Dashboard


def write_note(plan: SearchPlan, *, root: Path, result: StudyResult | None = None) -> str:
    """Return a study's note: its answer, what is shown, and where things are.

    Args:
        plan: of the search.
        root: the study's folder.
        result: what is known so far; None: the search has just begun.
    """
    answer = None if result is None else write_result(result, study=StudyFolder(root))
    is_running = result is not None and result.record.is_running
    return render_markdown("note.md", plan=plan, root=root, answer=answer, is_running=is_running)


def draw_dashboard(result: StudyResult) -> dict[str, str]:
    """Return the figures that have something to show as Plotly JSON, by an id that stays the same from search to search.

    Small, since the dashboard asks for all of it every few seconds: of many candidates it has some, evenly spaced.
    """
    step = math.ceil(len(result.scored) / MOST_TRIALS) or 1
    few = dataclasses.replace(result, scored=result.scored[::step])
    return {f"seed-{name}": write_figure(figure) for name, figure in draw_gallery(few).items()}


def write_figure(figure: go.Figure) -> str:
    """Return a figure as Plotly JSON, fitted to a card of half the dashboard's width."""
    title = {"text": f"<b>{figure.layout.title.text}</b>", "automargin": False, "y": 0.97}
    margin = {"t": 64 if figure.layout.annotations else 48}
    return str(go.Figure(figure).update_layout(title=title, margin=margin, height=HEIGHT_PX).to_json())
