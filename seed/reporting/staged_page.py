"""What a staged search found: what it came to, its models beside that of one shot, and a link to each stage's report."""

import itertools
from pathlib import Path

from seed.console import Terminal
from seed.evidence import StagedSearch, StageRecord
from seed.reporting.document import Findings
from seed.reporting.result_text import describe_gain, list_model, make_table
from seed.reporting.wording import MARGIN_PERCENT, format_change, list_dropped, name_depth
from seed.results import Model, take_distilled

VERDICTS = {
    "lower": "Stages are better",
    "higher": "Stages are worse",
    "equivalent": f"Both are equivalent within {MARGIN_PERCENT}",
    "cannot tell": "The two cannot be told apart",
}
NOTE = (
    "Ratios are to the original model, which also teaches in every stage. Each stage begins where the one before ended, from its best model "
    "by validation text. PPL in stages over at once: both on test text, paired by document; brackets: 95\u00a0% interval, in which how the "
    "first stage might have gone is not."
)


def tell_staged(staged: StagedSearch) -> Findings:
    """Tell whether it paid to remove layers in stages."""
    stages = [*staged.stages, *([staged.one_shot] if staged.one_shot else [])]
    rows = [
        {"stage": one.name, "recovery tokens": f"{one.tokens:,}", **list_model(take_model(one), staged.dense)}
        for one in stages
    ]
    return Findings(
        study=staged.study,
        question="does it pay to remove layers in stages?",
        answers=list_answers(staged),
        note=NOTE,
        tables=[make_table(rows, title="After recovery, on test text.")],
        links={f"Report of {one.name}": f"{one.name}/report.html" for one in stages},
    )


def list_answers(staged: StagedSearch) -> list[str]:
    """Return what a staged search came to, as sentences."""
    last, gone = staged.stages[-1], [0, *(one.result.candidate.num_dropped for one in staged.stages)]
    counts = "+".join(str(after - before) for before, after in itertools.pairwise(gone))
    answers = [
        f"{name_depth(last.result.candidate)} in stages of {counts}, {describe_stage(last, staged)}, after {last.tokens:,} "
        "recovery tokens."
    ]
    if staged.stopped_because:
        answers.append(f"It ended because {staged.stopped_because}.")
    if staged.one_shot is not None:
        verdict = f"{VERDICTS[staged.verdict]} (PPL {format_change(staged.excess)})."
        if staged.excess.low is None:
            verdict = "The two cannot be compared."
        answers.append(f"At once for the same tokens, {describe_stage(staged.one_shot, staged)}. {verdict}")
    return answers


def describe_stage(stage: StageRecord, staged: StagedSearch) -> str:
    """Return which layers a stage's model lacks, and what that gained."""
    return f"without {list_dropped(stage.result.candidate)}: {describe_gain(take_model(stage), staged.dense)}"


def take_model(stage: StageRecord) -> Model:
    """Return a stage's best model."""
    return take_distilled(stage.result, stage.replication)


def show_staged(terminal: Terminal, staged: StagedSearch, *, root: Path) -> None:
    """Print what a staged search came to, and where everything lies."""
    terminal.say()
    for answer in list_answers(staged):
        terminal.say(answer)
    last = staged.stages[-1]
    gain = describe_gain(take_model(last), staged.dense).replace("\u00a0", " ")
    terminal.say(f"ship: {root / last.name / 'models' / last.result.key}  {gain}", wrap=False)
    terminal.say(f"open: {root / 'report.html'}", wrap=False)
