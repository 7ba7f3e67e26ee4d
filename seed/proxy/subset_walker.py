"""Losses of subsets of one resident model, without copying a weight: layers run on stored states.

Kept layers are walked as a trie, depth first, one layer for each node and one head for each candidate; in
lexicographic order of their kept layers neighbours share most. A map of closed form depends only on the prefix and the
next kept layer, and is shared just so. In a model with gaps, closed form aims at that model's own states.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seed.data.corpus import TokenStream
from seed.evaluation.perplexity import DocumentLosses, iterate_batches, sum_by_document, token_losses
from seed.models.anatomy import Anatomy
from seed.models.output_projection import NormedProjection, OutputProjection
from seed.proxy.closed_form import Correction, ProjectionFit, Refit, count_fit_bytes
from seed.proxy.shared_maps import BEFORE_ALL, MAP_BYTES, SharedMaps, shares_maps
from seed.records import Candidate, Edge

# What candidates share that differ in the next kept layer only: kept for the layers nearest to the end of the path.
SIBLING_BYTES = 2 * 10**9
MAPS_OF_A_LAYER = 12  # of its gaps, about
# States behind prefixes of sets that were scored before, where maps are shared: so many, and no more than of so many paths.
KEPT_BYTES = 2 * 10**9
KEPT_PATHS = 8


def count_shared(path: Sequence[object], wanted: Sequence[object]) -> int:
    """How long the beginning is that two paths have in common."""
    return next(
        (i for i, (one, other) in enumerate(zip(path, wanted, strict=False)) if one != other),
        min(len(path), len(wanted)),
    )


def list_uncut(num_layers: int, *, gone_layers: Sequence[int]) -> tuple[Edge, ...]:
    """Edges of a model that lacks only what is gone already."""
    kept = [layer for layer in range(num_layers) if layer not in gone_layers]
    return Candidate.keep(num_layers=num_layers, kept_layers=kept).edges


def list_gaps(edges: Sequence[Edge], *, uncut: Sequence[Edge]) -> list[Edge]:
    """Edges that skip layers that were there; one before the first where that is not the uncut model's."""
    first = edges[0][0]
    return [(BEFORE_ALL, first)] * (first != uncut[0][0]) + [edge for edge in edges if edge not in uncut]


def list_prefixes(edges: tuple[Edge, ...]) -> list[tuple[Edge, ...]]:
    """The beginnings of a path, the shortest first."""
    return [edges[:end] for end in range(1, len(edges) + 1)]


def count_known(prefixes: Sequence[tuple[Edge, ...]], known: Container[tuple[Edge, ...]]) -> int:
    """How many of a path's prefixes are known, up to the first that is not: those behind it cannot be reached."""
    return next((i for i, prefix in enumerate(prefixes) if prefix not in known), len(prefixes))


def count_kept(num_layers: int, states_bytes: int) -> int:
    """Prefixes whose states stay where maps are shared, by the bytes of one."""
    return min(KEPT_BYTES // max(1, states_bytes), KEPT_PATHS * num_layers)


@torch.no_grad()
def measure_unrecovered(
    anatomy: Anatomy, candidates: Sequence[Candidate], stream: TokenStream, *, micro_batch: int
) -> list[DocumentLosses]:
    """Losses of each candidate as it stands, in the order given.

    Memory: the states of one micro-batch along one path, (L + 1) * B * T * D numbers, and its logits. The losses
    themselves are kept by token until a candidate's last batch: 4 bytes for each token and candidate.
    """
    order = sorted(range(len(candidates)), key=lambda i: candidates[i].kept_layers)
    rows: list[list[Tensor]] = [[] for _ in candidates]
    for tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
        path: list[int] = []
        states = [anatomy.embed(tokens)]
        for i in order:
            kept = candidates[i].kept_layers
            shared = count_shared(path, kept)
            del path[shared:], states[shared + 1 :]
            for layer in kept[shared:]:
                path.append(layer)
                states.append(anatomy.run_layer(layer, states[-1]))
            rows[i].append(token_losses(anatomy.compute_logits(states[-1], tokens), tokens).cpu())
    return [sum_by_document(torch.cat(parts).numpy(), stream) for parts in rows]


@dataclass(frozen=True, kw_only=True)
class _Node:
    """A layer of the current path: states after it (with its correction), for the next kept layer."""

    edge: Edge  # the layer, and the next kept one
    calibration: list[Tensor]
    validation: list[Tensor]
    correction: Correction | None

    def count_bytes(self) -> int:
        """Bytes of validation states and map."""
        held = [*self.validation, *([] if self.correction is None else [self.correction.weight])]
        return sum(tensor.nbytes for tensor in held)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A layer run on the path so far, before any correction: the same whichever layer is kept next."""

    layer: int
    calibration: list[Tensor]
    fit: ProjectionFit
    validation: list[Tensor]
    validation_inputs: list[Tensor]

    def count_bytes(self) -> int:
        held = (*self.calibration, *self.validation, *self.validation_inputs)
        return self.fit.count_bytes() + sum(states.nbytes for states in held)


class SubsetWalker:
    """Scores subsets with closed-form recovery.

    Where maps are shared (``is_shared``; None: as ``shares_maps`` says) there are some for each gap, and states behind prefixes
    stay for sets to come, whatever their order; else every layer behind the first gap is fitted for each candidate, and
    the states of one path stay.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        calibration: TokenStream,
        validation: TokenStream,
        micro_batch: int,
        gains: dict[int, float],
        is_shared: bool | None = None,
    ) -> None:
        self.anatomy = anatomy
        self.validation = validation
        self.gains = gains
        self.validation_batches = list(iterate_batches(validation, micro_batch=micro_batch, device=anatomy.device))
        self.uncut_edges = list_uncut(anatomy.num_layers, gone_layers=anatomy.gone_layers)
        # by batch, then by layer
        batches = iterate_batches(calibration, micro_batch=micro_batch, device=anatomy.device)
        self.uncut_states = [anatomy.trace(batch) for batch in batches]
        shares = shares_maps(anatomy) if is_shared is None else is_shared
        self.maps = SharedMaps(anatomy, self.uncut_states, gains=gains) if shares else None
        self.start = _Node(
            edge=(-1, 0),
            calibration=[states[0] for states in self.uncut_states],
            validation=[anatomy.embed(batch) for batch in self.validation_batches],
            correction=None,
        )
        self.nodes: dict[tuple[Edge, ...], _Node] = {}  # by prefix, those last in use last
        states_bytes = sum(states.nbytes for states in self.start.validation)
        self.most_kept = 0 if self.maps is None else count_kept(anatomy.num_layers, states_bytes) * states_bytes
        self.runs: dict[int, _Run] = {}  # by position in the path

    @torch.no_grad()
    def measure(self, candidate: Candidate) -> tuple[DocumentLosses, Refit]:
        """Return the candidate's validation losses and the maps that gave them."""
        edges = candidate.edges
        prefixes = list_prefixes(edges)
        shared = count_known(prefixes, self.nodes)
        path = {prefix: self.nodes.pop(prefix) for prefix in prefixes[:shared]}
        self._let_go(self.most_kept)
        self.runs = {position: run for position, run in self.runs.items() if position <= shared}
        last = path[prefixes[shared - 1]] if shared else self.start
        for position in range(shared, len(edges)):
            last = path[prefixes[position]] = self._step(edges, position, last)
        self.nodes |= dict(reversed(path.items()))  # of a path the end goes first: what begins it others share
        rows = []
        for hidden, tokens in zip(last.validation, self.validation_batches, strict=True):
            rows.append(token_losses(self.anatomy.compute_logits(hidden, tokens), tokens).cpu())
        losses = sum_by_document(torch.cat(rows).numpy(), self.validation)
        corrections = {node.edge[0]: node.correction for node in path.values() if node.correction is not None}
        return losses, corrections

    def count_bytes(self) -> int:
        """Bytes of the states that are held now."""
        held = [states for batch in self.uncut_states for states in batch]
        for node in (self.start, *self.nodes.values()):
            held += [*node.calibration, *node.validation]
        along = sum(storage.nbytes() for storage in {t.data_ptr(): t.untyped_storage() for t in held}.values())
        maps = 0 if self.maps is None else self.maps.count_bytes()
        if self.maps is not None:  # a sum of several gaps' maps is a map of its own
            maps += sum(node.correction.weight.nbytes for node in self.nodes.values() if node.correction is not None)
        return along + maps + sum(run.count_bytes() for run in self.runs.values())

    def release(self) -> None:
        """Let go of what sets share that come one after another; the dense model's states and maps stay."""
        self._let_go(0)
        self.runs.clear()

    def _let_go(self, most_bytes: int) -> None:
        """Let states go until no more bytes are held, those that were longest out of use first."""
        sizes = [node.count_bytes() for node in self.nodes.values()]
        excess = sum(sizes) - most_bytes
        for prefix, size in zip(list(self.nodes), sizes, strict=True):
            if excess <= 0:
                break
            del self.nodes[prefix]
            excess -= size

    def _step(self, edges: Sequence[Edge], position: int, before: _Node) -> _Node:
        """Run one more layer on the states of the path, with a map when it stands at or behind a cut."""
        layer, following = edges[position]
        if edges[position] == self.uncut_edges[position]:  # nothing is cut so far
            calibration = [states[layer + 1] for states in self.uncut_states if self.maps is None]
            validation = [self.anatomy.run_layer(layer, hidden) for hidden in before.validation]
            return _Node(edge=edges[position], calibration=calibration, validation=validation, correction=None)
        if self.maps is not None:
            return self._step_by_maps(edges, position, before)
        run = self._run_once(position, layer, before)
        gain = self.gains[layer]
        gaps = [
            (states[following] - result) / gain
            for states, result in zip(self.uncut_states, run.calibration, strict=True)
        ]
        correction = run.fit.solve(gaps)
        is_last = position == len(edges) - 1
        calibration = [] if is_last else _correct(run.calibration, run.fit.inputs, correction, gain)
        validation = _correct(run.validation, run.validation_inputs, correction, gain)
        return _Node(edge=edges[position], calibration=calibration, validation=validation, correction=correction)

    def _step_by_maps(self, edges: Sequence[Edge], position: int, before: _Node) -> _Node:
        """Run one more layer, with the maps of gaps that come before it or next."""
        assert self.maps is not None
        edge = edges[position]
        gaps = list_gaps(edges[: position + 1], uncut=self.uncut_edges)
        correction = self.maps.add_up(edge[0], gaps)
        if correction is None:
            validation = [self.anatomy.run_layer(edge[0], hidden) for hidden in before.validation]
        else:
            outlet = self.anatomy.find_output_projection(edge[0])
            assert outlet is not None, "measure_gains proved that there is one"
            if isinstance(outlet, NormedProjection):
                with outlet.folded(correction.weight, correction.bias, correction.scale):
                    validation = [self.anatomy.run_layer(edge[0], hidden) for hidden in before.validation]
            else:
                results, inputs = self._run_recorded(edge[0], outlet, before.validation)
                validation = _correct(results, inputs, correction, self.gains[edge[0]])
        return _Node(edge=edge, calibration=[], validation=validation, correction=correction)

    def _run_once(self, position: int, layer: int, before: _Node) -> _Run:
        """Run a layer on the path so far, unless a sibling has."""
        if position in self.runs and self.runs[position].layer == layer:
            return self.runs[position]
        outlet = self.anatomy.find_output_projection(layer)
        assert outlet is not None, "measure_gains proved that there is one"
        calibration, inputs = self._run_recorded(layer, outlet, before.calibration)
        validation, validation_inputs = self._run_recorded(layer, outlet, before.validation)
        run = _Run(
            layer=layer,
            calibration=calibration,
            fit=ProjectionFit(inputs, has_bias=outlet.has_bias),
            validation=validation,
            validation_inputs=validation_inputs,
        )
        self.runs[position] = run
        while sum(known.count_bytes() for known in self.runs.values()) > SIBLING_BYTES:
            del self.runs[min(self.runs)]  # most siblings come near the end of the path
        return run

    def _run_recorded(
        self, layer: int, outlet: OutputProjection, states: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run a layer; return its results (B, T, D) and what a correction is computed from (B, T, F), batch by batch."""
        with outlet.record_inputs() as inputs:
            results = [self.anatomy.run_layer(layer, hidden) for hidden in states]
        return results, [read.reshape(*result.shape[:2], -1) for read, result in zip(inputs, results, strict=True)]


def _correct(results: list[Tensor], inputs: Sequence[Tensor], correction: Correction, gain: float) -> list[Tensor]:
    return [result + gain * correction.apply(read) for result, read in zip(results, inputs, strict=True)]


@dataclass(frozen=True, kw_only=True)
class TrieWork:
    """What walking some candidates costs, counted."""

    plain_layers: int  # layers run on validation tokens only
    run_layers: int  # layers run on calibration and validation tokens, and their inputs' products summed
    solved_layers: int  # corrections solved for and applied; of one run there is one for each layer that may follow
    heads: int


def count_work(candidates: Iterable[Candidate], *, closed_form: bool, gone_layers: Sequence[int] = ()) -> TrieWork:
    """Count the nodes of the trie of kept layers, candidates in lexicographic order of their kept layers.

    They are cut from a model that lacks ``gone_layers`` already.
    """
    plain, run, solved, heads = 0, 0, 0, 0
    path: Sequence[Edge] = ()
    uncut: Sequence[Edge] = ()
    for candidate in candidates:
        uncut = uncut or list_uncut(candidate.num_layers, gone_layers=gone_layers)
        kept = candidate.kept_layers
        edges = candidate.edges if closed_form else tuple(zip(kept, kept, strict=True))
        shared = count_shared(path, edges)
        new = edges[shared:]
        num_plain = sum(not closed_form or edge == uncut[shared + i] for i, edge in enumerate(new))
        is_sibling = (
            shared < min(len(edges), len(path)) and path[shared][0] == edges[shared][0] and num_plain < len(new)
        )
        was_plain = is_sibling and path[shared] == uncut[shared]  # then nothing was recorded
        plain, solved, heads = plain + num_plain, solved + len(new) - num_plain, heads + 1
        run += len(new) - num_plain - (is_sibling and not was_plain)
        path = edges
    return TrieWork(plain_layers=plain, run_layers=run, solved_layers=solved, heads=heads)


def estimate_memory(
    *,
    num_layers: int,
    width: int,
    mlp_width: int,
    calibration_tokens: int,
    validation_tokens: int,
    number_bytes: int,
    shares_maps: bool = False,
) -> int:
    """Bytes of the states that a ``SubsetWalker`` holds at most: (L + 1) (2 C + V) D numbers, and what siblings share.

    They are the uncut model's states of C calibration tokens at every layer, and the states of the calibration and the
    V validation tokens along the current path. Siblings share (C + V) (D + F) numbers for each layer, where the
    projections read F, and the fit's sums and factors; of that, ``SIBLING_BYTES`` at most are kept, but for the layer at
    work. Where maps are shared there are no calibration states along a path, and those of ``KEPT_PATHS`` other paths.
    """
    if shares_maps:  # one path's states of validation text, and others'; maps; and a fit's inputs, sums and factors
        states = (num_layers + 1) * (calibration_tokens + validation_tokens) * width * number_bytes
        states += min(KEPT_BYTES, KEPT_PATHS * num_layers * validation_tokens * width * number_bytes)
        maps = min(MAP_BYTES, MAPS_OF_A_LAYER * num_layers * mlp_width * width * 4)
        return states + maps + 3 * calibration_tokens * mlp_width * 4 + count_fit_bytes(mlp_width)
    states = (num_layers + 1) * (2 * calibration_tokens + validation_tokens) * width * number_bytes
    one_layer = (calibration_tokens + validation_tokens) * (width + mlp_width) * number_bytes + count_fit_bytes(
        mlp_width
    )
    return states + min(num_layers * one_layer, max(one_layer, SIBLING_BYTES))
