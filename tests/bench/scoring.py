"""What a score costs: python -m tests.bench.scoring (make bench)

On the embedded model, interleaved in one run: closed form with shared prefixes, closed form from scratch for
each candidate, no recovery, and short distillation. Ratios are to the first, pair by pair.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from seed.folder import StudyFolder
from seed.optimize.space import enumerate_candidates
from seed.records import Candidate
from seed.scoring.latency import summarise_pairs
from seed.scoring.proxy import Proxy, make_walker
from seed.stages import planning, workbench


def main() -> None:
    """Time blocks of neighbouring candidates by each way of scoring, in turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--block", type=int, default=8, help="neighbouring candidates timed at once")
    args = parser.parse_args()
    planning.quiet_libraries()
    with tempfile.TemporaryDirectory() as directory:
        settings = planning.SearchSettings()
        study = StudyFolder(Path(directory))
        bench, _ = workbench.open_for_search(settings, planning.find_preset(settings), study=study)
        instruments = workbench.prepare_instruments(bench)
        shared, fresh = make_walker(instruments, refit=True), make_walker(instruments, refit=True)
        raw = make_walker(instruments, refit=False)
        unmeasured = summarise_pairs(np.ones((2, 2)), None, structure="any", workload="none", device="cpu")
        short = Proxy(
            instruments,
            rung="short_distillation",
            short=workbench.short_settings(bench),
            latency_of=lambda candidate: unmeasured,
        )

        def score_fresh(candidate: Candidate) -> None:
            fresh.path.clear()
            fresh.measure(candidate)

        ways = {
            "closed form, shared prefixes": shared.measure,
            "closed form, from scratch": score_fresh,
            "no recovery, shared prefixes": raw.measure,
            f"all rungs up to {bench.protocol.short_steps} distillation steps": short.evaluate,
        }
        candidates = list(enumerate_candidates(bench.protocol.space))
        rng = np.random.default_rng(0)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round_number in range(args.rounds + 1):  # the first one warms up
            start = int(rng.integers(0, len(candidates) - args.block))
            for name, score in ways.items():
                block = candidates[start : start + (args.block if "distillation" not in name else 1)]
                began = time.perf_counter()
                for candidate in block:
                    score(candidate)
                if round_number:
                    seconds[name].append((time.perf_counter() - began) / len(block))
    reference = np.array(seconds["closed form, shared prefixes"])
    print(
        f"{args.rounds} rounds of {args.block} neighbouring candidates; median seconds a candidate, ratio (min to max)"
    )
    for name, values in seconds.items():
        ratios = np.array(values) / reference
        print(
            f"{name:45} {np.median(values):7.3f} s   {np.median(ratios):6.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        )


if __name__ == "__main__":
    main()
