"""How the rate of closed form in trie order falls with depth, width and text held fixed.

A contiguous block from the middle of the order is timed at each depth, depths in turns. Deeper models have more sets,
and sets of the middle share more than the average: the layers run for a candidate are counted in the block and in the
whole space, and the whole space's rate follows from them.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks import shapes, turns
from seed.console import Terminal
from seed.evaluation.perplexity import choose_micro_batch
from seed.models.anatomy import Anatomy
from seed.proxy.closed_form import measure_gains
from seed.proxy.subset_walker import SubsetWalker, count_work
from seed.records import Candidate

DEPTHS = (6, 12, 24, 48)
MAX_DROPPED = 2
BLOCK = 16  # the 6-layer model has 21 sets
NUM_WINDOWS = 8  # of calibration and of validation text, each
ROUNDS, ROUNDS_FULL = 3, 9


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Time the middle block of each depth in turns."""
    walkers = {depth: make_random_walker(shapes.make_llama(depth), num_windows=NUM_WINDOWS) for depth in DEPTHS}
    spaces = {depth: shapes.list_candidates(depth, max_dropped=MAX_DROPPED) for depth in DEPTHS}
    seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    rounds = ROUNDS_FULL if full else ROUNDS
    with terminal.stage("growth", total=rounds * len(DEPTHS)) as advance:
        for number in range(rounds):
            for depth in DEPTHS if number % 2 == 0 else DEPTHS[::-1]:
                seconds[depth].append(time_middle(walkers[depth], spaces[depth]))
                advance(1, "")
    rows = []
    for depth, space in spaces.items():
        rate = turns.spread_of([BLOCK / each for each in seconds[depth]])
        start = find_middle(space)
        before = count_layers(space[start - 1 : start])
        inside = (count_layers(space[start - 1 : start + BLOCK]) - before) / BLOCK
        whole = count_layers(space) / len(space)
        rows.append(
            {
                "num_layers": depth,
                "sets": len(space),
                "candidates_per_second": rate["median"],
                "spread": rate,
                "layers_per_candidate": inside,
                "layers_per_candidate_whole_space": whole,
                "candidates_per_second_whole_space": rate["median"] * inside / whole,
            }
        )
    return {"growth": rows, "growth_tokens": NUM_WINDOWS * shapes.WINDOW_TOKENS}


def make_random_walker(anatomy: Anatomy, *, num_windows: int) -> SubsetWalker:
    """A walker over random text, as much of it for calibration as for validation."""
    stream = shapes.make_stream(num_windows)
    gains = measure_gains(anatomy, anatomy.trace(stream.tokens_NT[:1]))
    assert gains is not None, "a Llama has its place for closed form"
    return SubsetWalker(
        anatomy,
        calibration=stream,
        validation=stream,
        micro_batch=choose_micro_batch(shapes.WINDOW_TOKENS, shapes.DEMO_VOCABULARY, device=anatomy.device),
        gains=gains,
    )


def find_middle(space: Sequence[Candidate]) -> int:
    """Where the middle block begins; there is a candidate before it."""
    return (len(space) - BLOCK) // 2


def time_middle(walker: SubsetWalker, space: Sequence[Candidate]) -> float:
    """Seconds of the middle block; the walker comes from the candidate before it, as in a sweep."""
    start = find_middle(space)
    walker.measure(space[start - 1])
    return turns.time_call(lambda: [walker.measure(candidate) for candidate in space[start : start + BLOCK]])


def count_layers(candidates: Sequence[Candidate]) -> int:
    """Layers that are run, on validation text alone or on calibration text too."""
    work = count_work(candidates, closed_form=True)
    return work.plain_layers + work.run_layers


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print rates by depth."""
    rows = [
        [
            f"{row['num_layers']} layers, {row['sets']:,} sets",
            turns.show_spread(row["spread"]),
            f"{row['layers_per_candidate']:.1f}",
            f"{row['layers_per_candidate_whole_space']:.1f}",
            f"{row['candidates_per_second_whole_space']:.2f}",
        ]
        for row in fields["growth"]
    ]
    tokens = f"{fields['growth_tokens']:,}"
    title = f"Closed form, {tokens} calibration and {tokens} validation tokens, up to {MAX_DROPPED} dropped"
    columns = ["space", "candidates / s (p10 to p90)", "layers each", "in the whole space", "candidates / s there"]
    terminal.show_table(columns, rows, title=title)
