"""How well each rung ranks: python -m tests.bench.ranking --out studies/rank-agreement.record/ranking.json

On the embedded model: candidates of two depths, half of them the best by closed form and half spread over the
rest, are scored at every rung and then distilled with the same budget. For each rung, within each depth and
never pooled: Kendall's tau with the distilled validation loss, and seconds a candidate. Run again, it goes on.
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

from seed import folder
from seed.folder import StudyFolder
from seed.optimize.space import enumerate_candidates
from seed.records import Candidate
from seed.scoring.distillation import distill
from seed.scoring.proxy import Instruments, make_walker, start_student, validation_losses
from seed.stages import finals, planning, workbench


def score_candidate(
    bench: workbench.Workbench, instruments: Instruments, walkers: dict[str, Any], candidate: Candidate, *, tokens: int
) -> dict[str, Any]:
    """Losses and seconds of one candidate at every rung and after full distillation."""
    row: dict[str, Any] = {"dropped": candidate.dropped_layers, "losses": {}, "seconds": {}}

    def note(rung: str, began: float, loss: float) -> None:
        row["losses"][rung], row["seconds"][rung] = loss, time.perf_counter() - began

    began = time.perf_counter()
    note("none", began, walkers["none"].measure(candidate)[0].loss)
    began = time.perf_counter()
    losses, refit = walkers["closed_form"].measure(candidate)
    note("closed_form", began, losses.loss)
    start = min(row["losses"], key=lambda rung: row["losses"][rung])
    full = finals.full_settings(bench, distill_tokens=tokens, learning_rate=bench.protocol.short_learning_rate)
    for rung, settings in (("short_distillation", workbench.short_settings(bench)), ("final", full)):
        began = time.perf_counter()
        student = start_student(instruments, candidate, refit if start == "closed_form" else None)
        went = distill(
            student,
            bench.teacher.model,
            instruments.recovery,
            dataclasses.replace(settings, looks=1),
            validate=lambda model: validation_losses(instruments, model).loss,
        )
        note(rung, began, went.curve[-1].validation_loss)
    return row


def kendall_tau(rows: list[dict[str, Any]], rung: str) -> float:
    """(concordant - discordant) / pairs, between a rung and the final."""
    signs = []
    for one, other in itertools.combinations(rows, 2):
        product = (one["losses"][rung] - other["losses"][rung]) * (one["losses"]["final"] - other["losses"]["final"])
        signs.append((product > 0) - (product < 0))
    return sum(signs) / len(signs)


def top_regret(rows: list[dict[str, Any]], rung: str) -> float:
    """Final loss of the rung's pick minus the best final loss, nats a token."""
    pick = min(rows, key=lambda row: row["losses"][rung])
    return float(pick["losses"]["final"] - min(row["losses"]["final"] for row in rows))


def main() -> None:
    """Score, distill, write each row as it comes, and print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--per-depth", type=int, default=8)
    parser.add_argument("--distill-tokens", type=int, default=100_000)
    args = parser.parse_args()
    planning.quiet_libraries()
    settings = planning.SearchSettings()
    study = StudyFolder(args.out.parent)
    bench, _ = workbench.open_for_search(settings, planning.find_preset(settings), study=study)
    instruments = workbench.prepare_instruments(bench)
    walkers = {name: make_walker(instruments, refit=name == "closed_form") for name in ("none", "closed_form")}
    known = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    done = {tuple(row["dropped"]) for row in known["rows"]}
    for depth in args.depths:
        space = [c for c in enumerate_candidates(bench.protocol.space) if len(c.dropped_layers) == depth]
        ranked = sorted(space, key=lambda c: walkers["closed_form"].measure(c)[0].loss)
        best = ranked[: args.per_depth // 2]
        rest = ranked[len(best) :]
        chosen = best + rest[:: -(-len(rest) // (args.per_depth - len(best)))]
        for candidate in chosen:
            if candidate.dropped_layers not in done:
                row = score_candidate(bench, instruments, walkers, candidate, tokens=args.distill_tokens)
                known["rows"].append(row)
                known["settings"] = {"distill_tokens": args.distill_tokens, "short_steps": bench.protocol.short_steps}
                known["dense_loss"] = instruments.dense_validation.loss
                folder.write_bytes(args.out, json.dumps(known, indent=1).encode())
                print(row, flush=True)
    for depth in args.depths:
        rows = [row for row in known["rows"] if len(row["dropped"]) == depth]
        for rung in ("none", "closed_form", "short_distillation"):
            seconds = sorted(row["seconds"][rung] for row in rows)[len(rows) // 2]
            print(
                f"{depth} dropped, {len(rows)} candidates, {rung:18} tau {kendall_tau(rows, rung):+.2f}  "
                f"regret of its pick {top_regret(rows, rung):.4f} nats  {seconds:.2f} s"
            )


if __name__ == "__main__":
    main()
