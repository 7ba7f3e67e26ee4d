"""Ways to recover side by side: what each made of the same models at equal tokens, and at equal time."""

import numpy as np

from seed.evidence import RecoveredRow, RecoveryComparison, TrainedRun
from seed.optimize.comparison import NOTHING, estimate_ratio
from seed.optimize.replication import CANNOT_TELL, EQUIVALENT, is_paired, judge_difference, stack_losses
from seed.records import Estimate

AT = ("equal tokens", "equal time")


def summarize_recoveries(comparison: RecoveryComparison) -> tuple[RecoveredRow, ...]:
    """Return a row for each model, budget and recovery; within a model and a budget best first."""
    ledger = comparison.ledger
    counts_D = np.array(ledger.test_counts)
    rows = []
    for key in dict.fromkeys(run.key for run in ledger.runs):
        for at in AT:
            groups = {
                name: find_runs(comparison, key, name, at=at)
                for name in dict.fromkeys(run.recovery for run in ledger.runs if run.key == key)
            }
            groups = {name: runs for name, runs in groups.items() if runs}
            theirs = groups.get(comparison.reference, [])
            found = []
            for name, runs in groups.items():
                ours_RSD = stack_losses(runs)
                excess, verdict = Estimate(value=0.0, low=0.0, high=0.0), EQUIVALENT
                if name != comparison.reference and is_paired(runs, theirs):
                    excess, verdict = judge_difference(ours_RSD, stack_losses(theirs), counts_D)
                elif name != comparison.reference:
                    excess, verdict = NOTHING, CANNOT_TELL
                found.append(
                    RecoveredRow(
                        key=key,
                        num_dropped=runs[0].num_dropped,
                        recovery=name,
                        at=at,
                        tokens=runs[0].tokens,
                        seconds=float(np.mean([run.seconds for run in runs])),
                        ppl_ratio=estimate_ratio(ours_RSD, ledger.dense_test_sums, counts_D),
                        excess=excess,
                        verdict=verdict,
                    )
                )
            rows += sorted(found, key=lambda row: (row.ppl_ratio.value or np.inf, row.recovery))
    return tuple(rows)


def find_runs(comparison: RecoveryComparison, key: str, recovery: str, *, at: str) -> list[TrainedRun]:
    """The runs of a recovery on a model at a budget, by random seed."""
    tokens = (
        comparison.equal_tokens
        if at == "equal tokens" or recovery == comparison.reference
        else comparison.equal_time.get(key, {}).get(recovery)
    )
    found = [run for run in comparison.ledger.runs if (run.key, run.recovery, run.tokens) == (key, recovery, tokens)]
    return sorted(found, key=lambda run: run.rng_seed)
