"""How the numbers of a page were measured: extent, plan, identity, distillations, versions, and the command again."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from seed.findings import StudyRecord
from seed.records import DistillResult
from seed.reporting.document import escape, render_details, render_section, render_values
from seed.reporting.wording import list_layers, name_rung


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
    if record.distilled:
        body += f"<h3>Distillation</h3>\n{render_values(gather_settings(record.distilled))}\n"
    body += render_details("Identity: what decides the meaning of the numbers", render_values(plan.identity))
    body += render_details("Environment: versions and hardware", render_values(msgspec.to_builtins(record.environment)))
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
