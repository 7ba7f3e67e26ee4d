"""The page of claims about dropping layers: verdicts, what each trained model reached, what single layers cost, the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from seed.evidence import TrainedRun
from seed.records import Estimate, WidthCut
from seed.reporting.document import Findings
from seed.reporting.experiment_page import name_key
from seed.reporting.figure_parts import (
    DEPTH_COLORS,
    GREY,
    Dot,
    draw_bars,
    draw_dots,
    find_limit,
    finish_figure,
)
from seed.reporting.result_text import Table, make_table
from seed.reporting.wording import ABSENT, count_things, format_interval, format_latency_ratio, name_proxy, name_width
from studies.claims.verdicts import Claim, Evidence, Finding, estimate_cost, estimate_ratio

# verdict: sign, and what a count of them says
VERDICTS = {
    "holds": ("\N{CHECK MARK}", ("holds", "hold")),
    "does not hold": ("\N{BALLOT X}", ("does not hold", "do not hold")),
    "cannot tell": ("?", ("cannot be told", "cannot be told")),
}
# way to a smaller model: what people call it, colour
WAYS = {
    "distillation": ("dropped at once, distilled", DEPTH_COLORS[0]),
    "stages": ("dropped in stages, distilled", DEPTH_COLORS[2]),
    "width": ("cut in width, distilled", GREY),
    "pretraining": ("continued pretraining", DEPTH_COLORS[1]),
    "lora-pretraining": ("LoRA on the text alone", DEPTH_COLORS[3]),
}
NOTE = (
    "A claim holds where the whole 95\u00a0% interval of what was measured says so, does not hold where the whole interval says otherwise, "
    "and else this evidence cannot tell. Per cent: one perplexity over another less 1, same documents and random seeds. PPL ratio: "
    "perplexity on test text after recovery, divided by the dense model's. Brackets: 95\u00a0% interval by Student's t, as documents and "
    "random seeds vary, not corrected for the number of comparisons. What was reported was measured on other models and text: a claim "
    "may be right there and wrong here."
)
REACHED = (
    "Perplexity on test text divided by the dense model's; smaller is better, each panel has its own axis. Marks: mean over random "
    "seeds; bars: 95\u00a0% interval, as documents and random seeds vary. All share documents and seeds, so that two may differ although "
    "their bars overlap: the verdicts rest on paired differences."
)
SINGLES = (
    "Each layer dropped by itself: logarithm of perplexity over the dense model's, on validation text; at 0 nothing is lost. Bars: "
    "95\u00a0% interval, as documents vary."
)


def name_model(key: str) -> str:
    """Return what people call the model of a key: ``without 3, 5``, ``none; MLP 304, 3 heads``; others keep it."""
    begin, *sizes = key.split("-")
    if begin != "width" or len(sizes) != 2 or not all(size.isdigit() for size in sizes):
        return name_key(key)
    width, heads = map(int, sizes)
    return name_width(WidthCut(num_layers=0, mlp_width=width, num_heads=heads, num_kv_heads=heads))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their random seed only, by random seed. ``depth``: of a width, the layers whose size it has."""

    depth: float
    way: str
    runs: tuple[TrainedRun, ...]
    ratio: Estimate

    @property
    def models(self) -> str:
        """What people call the models, each once."""
        return "; ".join(dict.fromkeys(name_model(run.key) for run in self.runs))


def tell_claims(evidence: Evidence, answers: Sequence[tuple[Claim, Finding]]) -> Findings:
    """Tell what the model says to each claim."""
    groups = group_runs(evidence)
    return Findings(
        study=evidence.ledger.study,
        question="which claims about dropping layers hold on this model?",
        answers=[
            f"{count_verdicts(answers)} Model: {evidence.ledger.model}.",
            *(
                f"{VERDICTS[finding.verdict][0]} {finding.verdict}: {claim.text} Found: {finding.found}. "
                f"Reported: {claim.reported} ({claim.source})."
                for claim, finding in answers
            ),
        ],
        note=NOTE,
        figures=[(draw_reached(evidence, groups), REACHED), draw_singles(evidence)],
        tables=[tabulate_trained(evidence, groups), tabulate_times(evidence)],
        settings={
            "model": evidence.ledger.model,
            "parameters of the dense model": f"{evidence.ledger.dense_num_params:,}",
            "documents of the test text": f"{len(evidence.ledger.test_counts):,}",
            **evidence.ledger.settings,
            "roles": {role: name_model(key) for role, key in evidence.roles.items()},
        },
    )


def count_verdicts(answers: Sequence[tuple[Claim, Finding]]) -> str:
    """Return ``Of 10 claims 5 hold, 2 do not hold, 3 cannot be told.``."""
    counts = {verdict: sum(finding.verdict == verdict for _, finding in answers) for verdict in VERDICTS}
    told = [f"{count} {VERDICTS[verdict][1][count != 1]}" for verdict, count in counts.items() if count]
    return f"Of {count_things(len(answers), 'claim')} {', '.join(told)}."


def group_runs(evidence: Evidence) -> list[Group]:
    """Return the runs by model and recovery, fewest dropped layers first; staged ones, whichever layers went, together."""
    depths = {
        key: len(evidence.members[role.removeprefix("width ")].candidate.dropped_layers)
        for role, key in evidence.roles.items()
    }
    found: dict[tuple[float, str, str], list[TrainedRun]] = {}
    for run in sorted(evidence.ledger.runs, key=lambda run: run.rng_seed):
        way = "stages" if run.stages else run.recovery if run.num_dropped else "width"
        depth = run.num_dropped or depths[run.key]
        found.setdefault((depth, way, "" if run.stages else run.key), []).append(run)
    ordered = sorted(found.items(), key=lambda item: (item[0][0], list(WAYS).index(item[0][1])))
    return [
        Group(depth=depth, way=way, runs=tuple(runs), ratio=estimate_ratio(evidence, runs))
        for (depth, way, _), runs in ordered
    ]


def name_depth(evidence: Evidence, depth: float) -> str:
    """Return ``3 of 12 layers dropped``."""
    return f"{depth} of {evidence.num_layers} layers dropped"


def draw_reached(evidence: Evidence, groups: Sequence[Group]) -> go.Figure:
    """Draw the test PPL ratio of each trained model, the mean with its interval: a panel for each size."""
    panels: dict[str, list[Dot]] = {}
    for group in groups:
        way, color = WAYS[group.way]
        dot = Dot(row=f"{group.models}, {way}", estimate=group.ratio, color=color)
        panels.setdefault(name_depth(evidence, group.depth), []).append(dot)
    return draw_dots(panels, title="What each model reached", x_title="PPL ratio")


def draw_singles(evidence: Evidence) -> tuple[go.Figure, str]:
    """Draw the log PPL ratio of each layer dropped alone, a series for each proxy, with its interval over documents; and its caption."""
    layers = range(evidence.num_layers)
    costs = {
        proxy: [estimate_cost(evidence, {layer: 1.0}, proxy=proxy) for layer in layers] for proxy in evidence.singles
    }
    limit = find_limit([cost.value for by_layer in costs.values() for cost in by_layer if cost.value is not None])
    figure, beyond = go.Figure(), []
    for index, (proxy, by_layer) in enumerate(costs.items()):
        near = {layer: cost for layer, cost in zip(layers, by_layer, strict=True) if (cost.value or 0.0) <= limit}
        beyond += [
            f"layer {layer} with {name_proxy(proxy)} ({format_interval(by_layer[layer])})"
            for layer in layers
            if layer not in near
        ]
        color, symbol = ((GREY, "circle"), (DEPTH_COLORS[0], "diamond"))[index]
        figure.add_scatter(
            x=[layer + 0.12 * (2 * index - len(costs) + 1) for layer in near],
            y=[cost.value for cost in near.values()],
            error_y=draw_bars(list(near.values()), color=color),
            customdata=[[layer, format_interval(cost)] for layer, cost in near.items()],
            hovertemplate="layer %{customdata[0]}: %{customdata[1]}<extra>%{fullData.name}</extra>",
            mode="markers",
            name=name_proxy(proxy),
            marker={"color": color, "symbol": symbol, "size": 9},
        )
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.update_xaxes(dtick=1 if evidence.num_layers <= 32 else 4, range=[-0.6, evidence.num_layers - 0.4])
    caption = f"{SINGLES} Farther off: {'; '.join(beyond)}." if beyond else SINGLES
    y_title = "log PPL ratio (nats per token)"
    return finish_figure(figure, title="What one layer costs", x_title="dropped layer", y_title=y_title), caption


def tabulate_trained(evidence: Evidence, groups: Sequence[Group]) -> Table:
    """Return the table of all trained models."""
    title = (
        "Every trained model. Last look gained: how much the validation loss, nats per token, fell between the last two looks; "
        "near 0 a plateau is reached."
    )
    rows = [
        {
            "model": f"{name_depth(evidence, group.depth)}, {WAYS[group.way][0]}",
            "layers or width": group.models,
            "parameters": f"{group.runs[0].num_params:,}",
            "random seeds": ", ".join(str(run.rng_seed) for run in group.runs),
            "PPL ratio": format_interval(group.ratio),
            "last look gained": say_last_gain(group.runs),
        }
        for group in groups
    ]
    return make_table(rows, title=title)


def tabulate_times(evidence: Evidence) -> Table:
    """Return the table of all times."""
    rows = [
        {
            "model": name,
            "workload": one.workload,
            "median, ms": f"{one.median_ms:,.2f}",
            "dense, ms": f"{one.dense_median_ms:,.2f}",
            "ratio": format_latency_ratio(one),
        }
        for name, one in evidence.latencies.items()
    ]
    return make_table(rows, title="Measured in turn with the dense model.")


def say_last_gain(runs: Sequence[TrainedRun]) -> str:
    """Return by how much the validation loss fell between the last two looks, mean of the runs."""
    gains = [run.curve[-2].validation_loss - run.curve[-1].validation_loss for run in runs if len(run.curve) > 1]
    return f"{sum(gains) / len(gains):+z.4f}" if gains else ABSENT
