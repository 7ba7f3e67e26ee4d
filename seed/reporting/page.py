"""The report: one HTML file that answers first, then shows how the answer came about, and loads nothing.

No figures are drawn here and nothing is measured or decided.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from seed import folder
from seed.findings import StudyRecord
from seed.records import DistillResult, FrontierMember, Quality, Size
from seed.reporting import figures
from seed.reporting.document import escape, render_document, render_figure, render_section, render_table, render_values
from seed.reporting.gain import say_rival, say_solver
from seed.reporting.readings import choose_best_distilled
from seed.reporting.replication import (
    HEADER,
    MARGIN_PERCENT,
    list_replications,
    name_model,
    say_equivalence,
    say_ratio,
)
from seed.reporting.wording import (
    ABSENT,
    count_things,
    describe_size,
    describe_speed,
    format_bytes,
    format_count,
    format_latency_ratio,
    format_number,
    format_ppl_ratio,
    list_layers,
    name_depth,
    name_rung,
)

SIZE_HEADER = ("parameters", "weights", "KV cache per token")


def write_page(record: StudyRecord, path: Path, *, command: str) -> None:
    """Write the report of a study as one self-contained HTML file.

    Args:
        record: all that is shown; sections for which it has nothing are left out.
        path: the file; readers see the old one or the new one, never half of it.
        command: the shell command that repeats the study.

    Raises:
        ResourceError: the file cannot be written.
    """
    folder.write_bytes(path, render_page(record, command=command).encode())


def render_page(record: StudyRecord, *, command: str) -> str:
    """Return the report as HTML. The same record gives the same bytes."""
    sections = [
        render_answer(record),
        render_distilled(record),
        render_replication(record),
        render_frontier(record),
        render_gain(record),
        *render_figures(record),
        render_protocol(record),
        render_section("environment", "Environment", render_values(msgspec.to_builtins(record.environment))),
        render_section("repeat", "Repeat this", f"<pre>{escape(command)}</pre>"),
    ]
    question = "Seed: which layers can this model live without?"
    return render_document(sections, name=record.plan.name, question=question)


def render_answer(record: StudyRecord) -> str:
    """Return the answer in words: a sentence for each depth's best distilled model, or else for the frontier."""
    best = choose_best_distilled(record)
    members = [member for member in record.frontier.members if member.rank == 0]
    if best:
        distilled = count_things(len(record.distilled), "model")
        intro = f"{distilled} distilled in full. The best of each depth, chosen on validation text:"
        items = [describe_distilled(result, record=record) for result in best]
    elif members:
        intro = (
            f"Nothing was distilled. By the proxy ({name_rung(record.frontier.rung)}, validation text), "
            "the best candidate of each depth is:"
        )
        items = [describe_member(member, record=record) for member in members]
    else:
        return render_section(
            "answer", "The answer", "<p>No candidate was scored completely, so there is no frontier.</p>"
        )
    latency = record.dense.latency
    note = (
        "PPL ratio: perplexity divided by the dense model's on the same tokens; ± is one standard error, clustered by "
        f"document. Speed: {latency.workload} on {latency.device}, against the dense model. Sizes count parameters."
    )
    listed = "\n".join(f"<li>{item}</li>" for item in items)
    body = f'<p>{escape(intro)}</p>\n<ul class="answers">\n{listed}\n</ul>\n<p class="note">{escape(note)}</p>'
    return render_section("answer", "The answer", body)


def describe_distilled(result: DistillResult, *, record: StudyRecord) -> str:
    """Return the sentence on a distilled model, as HTML."""
    size = describe_size(result.size.num_params, dense_num_params=record.dense.size.num_params)
    return (
        f"<strong>{name_depth(result.candidate)}</strong> (without {list_layers(result.candidate.dropped_layers)}): "
        f"{escape(size)}, {escape(describe_speed(result.latency))}, "
        f"test PPL ratio {say_ratio(result, record.replications.get(result.key))} "
        f"(without recovery {format_number(result.test_unrecovered.ppl_ratio, places=2)})."
    )


def describe_member(member: FrontierMember, *, record: StudyRecord) -> str:
    """Return the sentence on a frontier member that was not distilled, as HTML."""
    evaluation = member.evaluation
    size = describe_size(evaluation.size.num_params, dense_num_params=record.dense.size.num_params)
    quality = evaluation.qualities.get(record.frontier.rung)
    ratio = f", validation PPL ratio {format_ppl_ratio(quality)}" if quality else ""
    return (
        f"<strong>{name_depth(evaluation.candidate)}</strong> "
        f"(without {list_layers(evaluation.candidate.dropped_layers)}): "
        f"{escape(size)}, {escape(describe_speed(evaluation.latency))}{ratio}."
    )


def render_distilled(record: StudyRecord) -> str:
    """Return the table of distilled models, the dense model first."""
    if not record.distilled:
        return ""
    dense = record.dense
    models = (*record.distilled, *record.baselines)
    has_scores = any(score is not None for score in [dense.user_score, *(r.user_score for r in models)])
    header = [
        "dropped layers",
        *SIZE_HEADER,
        "test PPL",
        "test PPL ratio",
        "KL",
        "top-1 agreement",
        "latency ratio",
        "PPL ratio without recovery",
    ]
    rows = [
        [
            "none (dense)",
            *list_size(dense.size),
            *list_quality(dense.test, is_dense=True),
            format_latency_ratio(dense.latency),
            ABSENT,
        ]
    ]
    rows += [
        [
            name_model(r),
            *list_size(r.size),
            *list_quality(r.test),
            format_latency_ratio(r.latency),
            format_number(r.test_unrecovered.ppl_ratio),
        ]
        for r in models
    ]
    if has_scores:
        header.append("your score")
        for row, score in zip(rows, [dense.user_score, *(r.user_score for r in models)], strict=True):
            row.append(ABSENT if score is None else f"{score:.6g}")
    caption = (
        "All on test text, which was read once. ±: one standard error. KL: from the dense model's predictions, nats "
        "per token. Top-1 agreement: how often the most likely next token is the dense model's. Brackets: 95 % "
        "interval."
        + (" A row with widths: all layers kept, each cut evenly to the same size." if record.baselines else "")
    )
    return render_section("distilled", "Distilled models", render_table(caption, header, rows, first_is_dense=True))


def render_replication(record: StudyRecord) -> str:
    """Return what several distillations of each model say together, and which models of a depth are the same."""
    rows = list_replications(record)
    if not rows:
        return ""
    caption = (
        "Each model distilled under several random seeds, all judged on test text. Interval: Student's t, as documents and "
        "distillations vary. The first distillation is the one that is exported, whatever the others reached."
    )
    names = {result.key: name_model(result) for result in (*record.distilled, *record.baselines)}
    items = "\n".join(f"<li>{escape(say_equivalence(found, names))}</li>" for found in record.equivalences)
    note = (
        f"Equivalent: two one-sided tests at 5 % put the difference within {MARGIN_PERCENT} of perplexity; better or worse: the "
        "95 % interval excludes zero; else these distillations cannot tell."
    )
    beside = f'<ul class="answers">\n{items}\n</ul>\n<p class="note">{escape(note)}</p>' if items else ""
    return render_section("replication", "Distilled more than once", render_table(caption, HEADER, rows) + beside)


def list_size(size: Size) -> list[str]:
    """Return the cells on size."""
    return [format_count(size.num_params), format_bytes(size.weight_bytes), format_bytes(size.kv_bytes_per_token)]


def list_quality(quality: Quality, *, is_dense: bool = False) -> list[str]:
    """Return the cells on test text: perplexity, its ratio, KL divergence, top-1 agreement."""
    return [
        format_number(quality.perplexity, places=2),
        "1" if is_dense else format_ppl_ratio(quality),
        ABSENT if quality.kl_divergence is None or is_dense else format_number(quality.kl_divergence, places=4),
        ABSENT if quality.top1_agreement is None or is_dense else f"{100 * quality.top1_agreement:.1f}\u00a0%",
    ]


def render_frontier(record: StudyRecord) -> str:
    """Return the table of the frontier and its runners-up, as the proxy sees them."""
    members = record.frontier.members
    if not members:
        return ""
    header = [
        "dropped layers",
        "place in its depth",
        "parameters",
        "validation PPL ratio",
        "latency ratio",
        "P(best)",
        "tied with",
    ]
    rows = []
    for member in members:
        evaluation = member.evaluation
        quality = evaluation.qualities.get(record.frontier.rung)
        rows.append(
            [
                list_layers(evaluation.candidate.dropped_layers),
                str(member.rank + 1),
                format_count(evaluation.size.num_params),
                format_ppl_ratio(quality) if quality else ABSENT,
                format_latency_ratio(evaluation.latency),
                f"{100 * member.probability_best:.0f}\u00a0%",
                count_things(len(member.tied_with), "other") if member.tied_with else "none",
            ]
        )
    caption = (
        f"PPL ratios after {name_rung(record.frontier.rung)}, on validation text. P(best): how often a resampling of "
        "the documents puts this candidate first among those of its structure. Tied: the paired difference is within "
        "two standard errors."
    )
    return render_section("frontier", "The frontier by the proxy", render_table(caption, header, rows))


def render_gain(record: StudyRecord) -> str:
    """Return how simpler ways to choose compare with the search, at which cost."""
    gain = record.gain
    if gain is None:
        return ""
    items = "\n".join(f"<li>{escape(say_rival(rival, gain))}</li>" for rival in gain.rivals)
    note = (
        f"PPL of what each would have dropped, beside the search's best of the same depth, after {name_rung(gain.rung)} on "
        "validation text; ± is one standard error of the paired difference, clustered by document. The search chose by "
        "these very scores, so that a little of its lead may be luck: python -m seed.compare judges distilled models, on "
        f"test text. Cost: {gain.cost:,.0f} layer-tokens for the search (one layer applied to one token; other work by its "
        "multiply-adds); for the others, what they would have paid by themselves."
    )
    body = f'<p>{escape(say_solver(gain, record.frontier))}</p>\n<ul class="answers">\n{items}\n</ul>\n<p class="note">{escape(note)}</p>'
    return render_section("gain", "What the search added", body)


def render_figures(record: StudyRecord) -> list[str]:
    """Return the sections that show a figure; plotly.js comes with the first."""
    drawn = [
        ("pareto", "Perplexity against latency", figures.draw_pareto(record)),
        ("layers", "Which layers go", figures.draw_layer_map(record)),
        ("agreement", "Does the proxy rank as distillation does?", figures.draw_proxy_against_final(record)),
        ("curves", "Learning curves of the distillation", figures.draw_learning_curves(record)),
        ("latency", "Latency by structure", figures.draw_latency(record)),
    ]
    shown = [row for row in drawn if row[2].data]
    return [
        render_section(key, title, render_figure(figure, key=key, with_library=index == 0))
        for index, (key, title, figure) in enumerate(shown)
    ]


def render_protocol(record: StudyRecord) -> str:
    """Return how the numbers were measured: the search's extent, the plan and its identity, the distillations."""
    frontier, space, plan = record.frontier, record.space, record.plan
    if frontier.num_scored >= frontier.space_size:
        extent = f"All {frontier.space_size:,} candidates of the space were scored: it was enumerated, not sampled."
    else:
        extent = (
            f"{frontier.num_scored:,} of the {frontier.space_size:,} candidates of the space were scored: it was "
            "searched, not enumerated, so a better candidate may exist."
        )
    states = Counter(trial.state for trial in record.trials)
    trials = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
    ranking = f"The frontier ranks by validation text after {name_rung(frontier.rung)}. {record.agreement.verdict}"
    body = f"<p>{escape(extent)}</p>\n<p>{escape(ranking)}</p>\n"
    study = {
        "layers that may go": list_layers(space.droppable_layers),
        **({"layers gone before": list_layers(space.gone_layers)} if space.gone_layers else {}),
        "dropped at once": f"{space.min_dropped} to {space.max_dropped}",
        "trials": trials or "none",
        "planned trials": plan.trials,
        "frontier size": plan.frontier_size,
        "distillation tokens per model": f"{plan.distill_tokens:,}",
        "limit on the PPL ratio": plan.max_ppl_ratio,
        "planned by": f"Seed {plan.seed_version}",
        "planned at": plan.created,
        "fingerprint of the identity": plan.fingerprint,
    }
    body += f"<h3>Study</h3>\n{render_values(study)}\n"
    body += f"<h3>Identity: what decides the meaning of the numbers</h3>\n{render_values(plan.identity)}\n"
    if record.distilled:
        body += f"<h3>Distillation</h3>\n{render_values(gather_settings(record.distilled))}\n"
    return render_section("protocol", "How this was measured", body)


def gather_settings(results: Sequence[DistillResult]) -> dict[str, object]:
    """Return the settings that all distillations share, then what is each model's own."""
    shared = {
        key: value for key, value in results[0].settings.items() if all(r.settings.get(key) == value for r in results)
    }
    own = {
        f"without {list_layers(r.candidate.dropped_layers)}": ", ".join(
            [f"{key.replace('_', ' ')} {value}" for key, value in r.settings.items() if key not in shared]
            + [f"started from {name_rung(r.start)}", f"kept step {r.best_step:,}", f"took {r.seconds:,.0f} s"]
        )
        for r in results
    }
    return {**shared, **own}
