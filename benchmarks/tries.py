"""Shared prefixes: losses of many subsets in trie order, against each subset on its own.

Alone, a subset is what anybody would run: a view of its layers, the model's own forward, the same loss on the same
windows. The bound counts layers and heads: (layer passes + heads) / (trie nodes + heads), a head being worth ``h``
layers by parameters. A sample of contiguous blocks stands for the space: its share of *its own* bound, times the bound
of the whole space.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks import shapes, turns
from seed.console import Terminal
from seed.data.corpus import TokenStream
from seed.evaluation.perplexity import choose_micro_batch, logits_of, measure_losses
from seed.models.anatomy import Anatomy
from seed.models.surgery import view_layers
from seed.proxy.subset_walker import count_work, measure_unrecovered
from seed.records import Candidate

BLOCK = 64  # neighbours; a block begins anew, which costs up to 3 % of the bound of the whole space
MICRO_BATCHES = 2
SPACES = {  # layers -> (vocabulary, most layers dropped, blocks of the sample)
    shapes.TINYLLAMA_LAYERS: (shapes.TINYLLAMA_VOCABULARY, 3, 6),
    shapes.DEMO_LAYERS: (shapes.DEMO_VOCABULARY, 4, 6),
}


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Time both ways block by block, in both spaces."""
    fields: dict[str, Any] = {}
    for num_layers, (vocabulary, max_dropped, num_blocks) in SPACES.items():
        anatomy = shapes.make_llama(num_layers, vocabulary=vocabulary)
        head_layers = shapes.count_head_layers(anatomy)
        micro_batch = choose_micro_batch(shapes.WINDOW_TOKENS, vocabulary, device=anatomy.device)
        stream = shapes.make_stream(MICRO_BATCHES * micro_batch, vocabulary=vocabulary)
        candidates = shapes.list_candidates(num_layers, max_dropped=max_dropped)
        blocks = shapes.cut_blocks(candidates, size=BLOCK, count=None if full else num_blocks)
        measure_block(anatomy, blocks[0][:2], stream, micro_batch=micro_batch, number=0)  # warms up
        rows = []
        with terminal.stage(f"trie {num_layers}", total=len(blocks)) as advance:
            for number, block in enumerate(blocks):
                seconds = measure_block(anatomy, block, stream, micro_batch=micro_batch, number=number)
                ratio = seconds["alone"] / seconds["shared"]
                rows.append({**seconds, "ratio": ratio, "share": ratio / count_bound([block], head_layers)})
                advance(1, f"ratio {ratio:.2f}")
        ratio = sum(row["alone"] for row in rows) / sum(row["shared"] for row in rows)
        bound, share = count_bound([candidates], head_layers), ratio / count_bound(blocks, head_layers)
        fields |= {
            f"trie_ratio_{num_layers}": bound * share,
            f"trie_bound_{num_layers}": bound,
            f"trie_share_{num_layers}": share,
            f"trie_share_spread_{num_layers}": turns.spread_of([row["share"] for row in rows]),
            f"trie_details_{num_layers}": {
                "subsets": len(candidates),
                "subsets_timed": sum(map(len, blocks)),
                "blocks": len(blocks),
                "ratio_timed": ratio,
                "bound_timed": count_bound(blocks, head_layers),
                "head_layers": head_layers,
                "tokens": stream.num_tokens,
                "seconds_shared": sum(row["shared"] for row in rows),
                "seconds_alone": sum(row["alone"] for row in rows),
            },
        }
    return fields


def measure_block(
    anatomy: Anatomy, block: Sequence[Candidate], stream: TokenStream, *, micro_batch: int, number: int
) -> dict[str, float]:
    """Seconds of a block both ways."""

    def score_alone() -> None:
        for candidate in block:
            with view_layers(anatomy, candidate) as view:
                measure_losses(logits_of(view), stream, micro_batch=micro_batch, device=anatomy.device)

    return turns.time_turn(
        {
            "shared": lambda: measure_unrecovered(anatomy, block, stream, micro_batch=micro_batch),
            "alone": score_alone,
        },
        number=number,
    )


def count_bound(blocks: Sequence[Sequence[Candidate]], head_layers: float) -> float:
    """What sharing could save at most, counted in layers; every block begins anew."""
    work = [count_work(block, closed_form=False) for block in blocks]
    heads = head_layers * sum(part.heads for part in work)
    passes = sum(len(candidate.kept_layers) for block in blocks for candidate in block)
    return (passes + heads) / (sum(part.plain_layers for part in work) + heads)


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print ratios beside their bounds."""
    rows = []
    for num_layers in SPACES:
        details = fields[f"trie_details_{num_layers}"]
        rows.append(
            [
                f"{num_layers} layers, {details['subsets']} subsets, head of {details['head_layers']:.2f} layers",
                f"{details['subsets_timed']} in {details['blocks']} blocks",
                f"{details['seconds_shared']:.1f} / {details['seconds_alone']:.1f}",
                f"{details['ratio_timed']:.2f} of {details['bound_timed']:.2f}",
                f"{fields[f'trie_ratio_{num_layers}']:.2f} of {fields[f'trie_bound_{num_layers}']:.2f}",
                turns.show_spread(fields[f"trie_share_spread_{num_layers}"]),
            ]
        )
    columns = ["space", "timed", "s shared / alone", "ratio timed", "whole space", "share of bound (p10 to p90)"]
    terminal.show_table(columns, rows, title="Shared prefixes against each subset on its own: at least 0.80 wanted")
