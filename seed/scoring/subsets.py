"""Losses of subsets of one resident model, without copying a weight: layers run on stored states.

The walker remembers the path of its last candidate, so a candidate that begins with the same kept layers
starts from where they end; candidates in lexicographic order of their kept layers share most.
A map fitted by ``refit`` depends only on the prefix and the next kept layer, and is shared just so.

Memory: the teacher's calibration states, and the calibration and validation states of the current path:
(L + 1) * (2 C + V) * D numbers for C calibration and V validation tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seed.models.anatomy import Anatomy, record_output
from seed.records import Candidate
from seed.scoring.corpus import TokenStream
from seed.scoring.quality import DocumentLosses, sum_by_document, token_losses
from seed.scoring.refit import Refit

FitCorrection = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Node:
    """A layer of the current path: states after it (and after its map), for the next kept layer."""

    edge: tuple[int, int]  # the layer, and the next kept one
    calibration: list[Tensor]
    validation: list[Tensor]
    correction: Tensor | None


class SubsetWalker:
    """Scores subsets with closed-form recovery, or as they stand when ``fit`` is None."""

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        calibration: TokenStream,
        validation: TokenStream,
        micro_batch: int,
        fit: FitCorrection | None,
        gains: dict[int, float] | None,
    ) -> None:
        assert (fit is None) == (gains is None), "maps need the gains they are scaled by"
        self.anatomy = anatomy
        self.validation = validation
        self.fit = fit
        self.gains = gains or {}
        self.validation_batches = _split(validation, micro_batch, anatomy.device)
        self.teacher_states: list[list[Tensor]] = []  # by batch, then by layer
        if fit is not None:
            self.teacher_states = [anatomy.trace(batch) for batch in _split(calibration, micro_batch, anatomy.device)]
        first = []
        for batch in self.validation_batches:
            first.append(anatomy.trace(batch)[0])
        self.start = _Node(
            edge=(-1, 0), calibration=[states[0] for states in self.teacher_states], validation=first, correction=None
        )
        self.path: list[_Node] = []

    @torch.no_grad()
    def measure(self, candidate: Candidate) -> tuple[DocumentLosses, Refit]:
        """Return the candidate's validation losses and the maps that gave them (none without ``fit``)."""
        kept = candidate.kept_layers
        edges = list(zip(kept, (*kept[1:], candidate.num_layers), strict=True))
        shared = 0
        while shared < min(len(edges), len(self.path)) and self.path[shared].edge == edges[shared]:
            shared += 1
        del self.path[shared:]
        for position in range(shared, len(edges)):
            self.path.append(self._step(edges, position))
        rows = []
        for hidden, tokens in zip(self.path[-1].validation, self.validation_batches, strict=True):
            rows.append(token_losses(self.anatomy.compute_logits(hidden, tokens), tokens).cpu())
        losses = sum_by_document(torch.cat(rows).numpy(), self.validation)
        corrections = {node.edge[0]: node.correction for node in self.path if node.correction is not None}
        return losses, Refit(corrections=corrections)

    def _step(self, edges: list[tuple[int, int]], position: int) -> _Node:
        """Run one more layer on the states of the path, with a map when it stands at or behind a cut."""
        layer, following = edges[position]
        before = self.path[-1] if self.path else self.start
        is_whole_so_far = edges[position] == (position, position + 1)
        if self.fit is None or is_whole_so_far:
            after_calibration = [states[layer + 1] for states in self.teacher_states] if is_whole_so_far else []
            validation = [self.anatomy.run_layer(layer, hidden) for hidden in before.validation]
            return _Node(edge=edges[position], calibration=after_calibration, validation=validation, correction=None)
        projection = self.anatomy.mlp_output(layer)
        assert projection is not None
        gain = self.gains[layer]
        outputs: list[Tensor] = []
        results: list[Tensor] = []
        with record_output(projection, outputs):
            results = [self.anatomy.run_layer(layer, hidden) for hidden in before.calibration]
        outputs = [gain * output.view(result.shape) for output, result in zip(outputs, results, strict=True)]
        gaps = [states[following] - result for states, result in zip(self.teacher_states, results, strict=True)]
        correction = self.fit(outputs, gaps)
        map_ = correction.to(results[0].dtype)
        calibration = [result + output @ map_ for result, output in zip(results, outputs, strict=True)]
        validation = []
        for hidden in before.validation:
            recorded: list[Tensor] = []
            with record_output(projection, recorded):
                result = self.anatomy.run_layer(layer, hidden)
            validation.append(result + gain * recorded[0].view(result.shape) @ map_)
        return _Node(edge=edges[position], calibration=calibration, validation=validation, correction=correction)


def estimate_memory(
    *, num_layers: int, width: int, calibration_tokens: int, validation_tokens: int, number_bytes: int
) -> int:
    """Bytes of stored states at most: (L + 1) * (2 C + V) * D numbers."""
    return (num_layers + 1) * (2 * calibration_tokens + validation_tokens) * width * number_bytes


def _split(stream: TokenStream, micro_batch: int, device: torch.device) -> list[Tensor]:
    return [batch.to(device) for batch in stream.tokens_NT.split(micro_batch)]
