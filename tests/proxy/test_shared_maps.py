"""Maps around each gap: what it is fitted to, and that a score with it is the loss of the folded student."""

import random

import pytest
import torch

from seed.evaluation.perplexity import logits_of, measure_losses
from seed.models.anatomy import Anatomy
from seed.models.surgery import make_student
from seed.optimize.space import drop_layers
from seed.proxy import shared_maps
from seed.proxy.closed_form import fold_refit, measure_gains
from seed.proxy.shared_maps import weigh_positions
from seed.proxy.subset_walker import SubsetWalker
from tests.models.families import make_model
from tests.proxy.streams import draw_stream

CPU = torch.device("cpu")
TEXT, VALIDATION = draw_stream(32, 48, rng_seed=1), draw_stream(6, 24, rng_seed=2)
SETS = [drop_layers(4, layers) for layers in ((1,), (2,), (1, 2), (0, 2), (3,), (0,))]


def make_walker(anatomy: Anatomy) -> SubsetWalker:
    gains = measure_gains(anatomy, anatomy.trace(TEXT.tokens_NT[:2]))
    assert gains is not None
    return SubsetWalker(anatomy, calibration=TEXT, validation=VALIDATION, micro_batch=4, gains=gains, is_shared=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_a_score_is_the_loss_of_the_folded_student(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    walker = make_walker(anatomy)
    for candidate in SETS:
        losses, refit = walker.measure(candidate)
        student = make_student(anatomy, candidate)
        fold_refit(student, candidate, refit)
        folded = measure_losses(logits_of(student), VALIDATION, micro_batch=4, device=CPU)
        assert folded.loss == pytest.approx(losses.loss, abs=1e-5)
        gaps = [edge for edge in candidate.edges if edge[1] != edge[0] + 1]
        if candidate.kept_layers[0] > 0:
            gaps.append((-1, candidate.kept_layers[0]))
        around = {layer for before, behind in gaps for layer in (before, behind, behind + 1)}
        assert set(refit) == around & set(candidate.kept_layers)


def test_maps_are_the_same_whichever_set_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = Anatomy(make_model("llama"))
    first = make_walker(anatomy)
    expected = [first.measure(candidate)[0].sums.tolist() for candidate in SETS]
    order = random.Random(0).sample(range(len(SETS)), len(SETS))
    second = make_walker(anatomy)
    monkeypatch.setattr(shared_maps, "MAP_BYTES", 1)  # none is kept longer than needed
    found = {place: second.measure(SETS[place])[0].sums.tolist() for place in order}
    assert [found[place] for place in range(len(SETS))] == expected
    assert second.maps is not None
    assert len(second.maps.maps) == 1


def test_states_behind_prefixes_stay_for_sets_to_come_within_a_bound() -> None:
    anatomy = Anatomy(make_model("llama"))
    walker = make_walker(anatomy)
    expected = [walker.measure(candidate)[0].sums.tolist() for candidate in SETS]
    assert walker.most_kept > 0
    prefixes = {candidate.edges[:end] for candidate in SETS for end in range(1, len(candidate.edges) + 1)}
    assert set(walker.nodes) == prefixes
    known = dict(walker.nodes)
    assert [walker.measure(candidate)[0].sums.tolist() for candidate in SETS] == expected
    assert all(walker.nodes[prefix] is node for prefix, node in known.items())  # none was computed again
    walker.most_kept = 0
    for candidate, sums in zip(SETS, expected, strict=True):
        assert walker.measure(candidate)[0].sums.tolist() == sums
        assert set(walker.nodes) == {candidate.edges[:end] for end in range(1, len(candidate.edges) + 1)}
    walker.most_kept = 4 * min(node.count_bytes() for node in walker.nodes.values())
    for candidate in [*SETS, *reversed(SETS)]:
        walker.measure(candidate)
        assert all(prefix[:-1] in walker.nodes for prefix in walker.nodes if len(prefix) > 1)  # else it is of no use
    walker.release()
    assert not walker.nodes


def test_a_map_brings_the_state_behind_the_gap_nearer_on_text_it_did_not_see() -> None:
    anatomy = Anatomy(make_model("llama"))
    walker = make_walker(anatomy)
    assert walker.maps is not None
    correction, outlet = walker.maps.find((0, 2))[0], anatomy.find_output_projection(0)
    assert outlet is not None
    with torch.no_grad():
        states = anatomy.trace(VALIDATION.tokens_NT)
        with outlet.record_inputs() as inputs:
            raw = anatomy.run_layer(0, states[0])
        mapped = raw + walker.gains[0] * correction.apply(inputs[0])
    assert (mapped - states[2]).norm() < 0.95 * (raw - states[2]).norm()


def test_sinks_are_held_and_other_rows_count_as_a_norm_makes_of_them() -> None:
    states = torch.ones(2, 64, 8)
    states[:, 0] = 200.0
    states[:, 1] = 2.0
    states[:, 2] = 0.01
    is_sink = torch.zeros(2, 64, 1, dtype=torch.bool)
    is_sink[:, [0, 5]] = True  # the latter becomes one at a later layer
    weights = weigh_positions([states, 0.5 * states], is_sink)[..., 0]
    assert weights[:, 6:].eq(1).all()
    assert weights[:, 1].allclose(torch.tensor(0.5))
    assert weights[:, 2].eq(shared_maps.LARGEST_WEIGHT).all()
    assert weights[:, 0].allclose(torch.tensor(shared_maps.SINK_WEIGHT / 200))
    assert weights[:, 5].allclose(torch.tensor(shared_maps.SINK_WEIGHT))
