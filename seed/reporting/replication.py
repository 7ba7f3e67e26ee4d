"""What several distillations of a model say together, in words: means with intervals, and which models are the same.

Plain text only; statistics are handed in.
"""

from seed.findings import Equivalence, Replication, StudyRecord
from seed.records import DistillResult, WidthCut
from seed.reporting.readings import list_ratios
from seed.reporting.wording import ABSENT, format_number, format_ppl_ratio, list_layers

MARGIN_PERCENT = "0.5\u00a0%"  # optimize.replication.MARGIN
HEADER = ("model", "distillations", "mean PPL ratio, 95 % interval", "standard deviation", "smallest and largest")


def name_model(result: DistillResult) -> str:
    """Return which layers are gone, or how all are cut: ``1, 7`` or ``none; width 304, 3 heads``."""
    return list_layers(result.candidate.dropped_layers) if result.width is None else name_width(result.width)


def name_width(width: WidthCut) -> str:
    """Return ``none; MLP 304, 3 heads``."""
    return f"none; MLP {width.mlp_width:,}, {width.num_heads} head{'' if width.num_heads == 1 else 's'}"


def say_ratio(result: DistillResult, replication: Replication | None, *, places: int = 3) -> str:
    """Return the test PPL ratio: the mean of replicas with its interval, or that of the only one with its standard error."""
    ratio = replication.ppl_ratio if replication else None
    if replication is None or ratio is None or ratio.value is None or ratio.low is None or ratio.high is None:
        return format_ppl_ratio(result.test, places=places)
    value, low, high = (format_number(number, places=places) for number in (ratio.value, ratio.low, ratio.high))
    return f"{value} [{low}, {high}], mean of {len(replication.rng_seeds)}"


def list_replications(record: StudyRecord) -> list[list[str]]:
    """Return a row for each replicated model: see ``HEADER``."""
    rows = []
    for result in (*record.distilled, *record.baselines):
        replication = record.replications.get(result.key)
        if replication is None:
            continue
        assert record.dense.test_sums is not None
        assert record.dense.test_counts is not None
        ratios = list_ratios(result.replicas, dense_sums=record.dense.test_sums, test_counts=record.dense.test_counts)
        rows.append(
            [
                name_model(result),
                str(len(replication.rng_seeds)),
                say_ratio(result, replication, places=4).rpartition(",")[0],
                ABSENT if replication.spread is None else format_number(replication.spread, places=4),
                f"{format_number(min(ratios), places=4)}, {format_number(max(ratios), places=4)}" if ratios else ABSENT,
            ]
        )
    return rows


def say_equivalence(found: Equivalence, names: dict[str, str]) -> str:
    """Return what two models of one depth are to each other."""
    one, other, excess = names[found.one], names[found.other], found.excess
    if excess.value is None or excess.low is None or excess.high is None:
        return f"without {one} against without {other}: cannot be compared"
    interval = f"{100 * excess.value:+.2f} [{100 * excess.low:+.2f}, {100 * excess.high:+.2f}]\u00a0% PPL"
    verdict = {
        "equivalent": f"equivalent within {MARGIN_PERCENT}",
        "lower": "better",
        "higher": "worse",
        "cannot tell": "cannot tell",
    }[found.verdict]
    return f"without {one} against without {other}: {verdict} ({interval})"
