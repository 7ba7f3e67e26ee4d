"""How the numbers of a page were measured: extent, plan, identity, distillations, versions, and the command again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from seed.findings import StudyRecord
from seed.records import DistillResult
from seed.reporting.document import escape, render_details, render_section, render_values
from seed.reporting.wording import list_layers, name_rung

# The rule by which streams are made, whole: who has the texts can make the streams again.
TEXT_RULE = (
    "Documents that differ from an earlier one in case and spaces only are left out. Thirty or more go to recovery, "
    "validation and test by the first byte of the sha256 of their text: its last decimal digit is 8 for validation, 9 "
    "for test. Fewer are cut into passages of 2,000 characters or more, at blank lines, else lines, else spaces (one "
    "of more than 20,000 again, and where there are fewer than twenty, one of more than 4,000; a paragraph of 100 or "
    "more that began one begins one again). Passages that are copies of earlier ones are left out; the others go to "
    "the three in blocks of 8 : 1 : 1, two at least to the latter. A text given for one stream alone is that stream's "
    "whole; a data set's own splits stay. Validation or test text beyond 4 million characters, 16 for each token of "
    "its limit where that is more, 16 million without a limit, is thinned to that: documents are spread evenly, none "
    "longer than its share where there are fewer than a hundred, else than a hundredth. Then contamination is taken "
    "out: words are runs of letters, digits and underscores (Chinese characters and kana: each one) of the text in "
    "Unicode's form NFKC and casefolded. A document of recovery text that has a 13-gram of words in common with "
    "validation or test text, or of validation text with test text, loses those stretches (up to the first line or "
    "sentence end behind 200 characters, 400 at most) of which 10 % or more of the 13-grams are there; 13-grams in "
    "more than two and more than 1 % of the judged documents are a form and do not count. Where documents are short "
    "the runs are as long as the shortest 5 % of a stream, 8 words at least (told with the stream), and the stretches "
    "are lines and sentences. Documents that are there whole are left out whatever their length; those shorter than a "
    "run are compared whole only. The demo's splits keep their overlap, which is told. A judged document that is "
    "alone is cut into passages. Recovery documents are shuffled beforehand (Python's random.Random(0)), all others "
    "stay in order; each ends with the end-of-text token (WikiText-2: none); what fills no window at the end is left "
    "out, and a limit takes windows spread evenly."
)


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
    body += f"<h3>Text</h3>\n{render_values(describe_texts(plan.identity))}\n<p class='note'>{escape(TEXT_RULE)}</p>\n"
    if record.distilled:
        body += f"<h3>Distillation</h3>\n{render_values(gather_settings(record.distilled))}\n"
    body += render_details("Identity: what decides the meaning of the numbers", render_values(plan.identity))
    body += render_details("Environment: versions and hardware", render_values(msgspec.to_builtins(record.environment)))
    return render_section("protocol", "How this was measured", body)


def describe_texts(identity: Mapping[str, Any]) -> dict[str, object]:
    """Return what each stream holds and what was left out of it, in words."""
    return {
        f"{name} text": "; ".join(
            [
                f"{stream['tokens']:,} tokens in {stream['documents']:,} documents of {stream['source']}",
                *stream.get("notes", ()),
            ]
        )
        for name, stream in identity.get("streams", {}).items()
    }


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
