"""Maps behind a norm: the change that a layer would need is found, and only where the norm is one that is understood."""

import torch
from torch import Tensor, nn

from seed.models.anatomy import Anatomy
from seed.models.output_projection import NormedProjection
from seed.proxy.closed_form import measure_gains
from seed.proxy.shared_maps import SharedMaps
from tests.models.families import make_model
from tests.proxy.streams import draw_stream


def open_layer(family: str) -> tuple[Anatomy, list[Tensor], NormedProjection]:
    """A model, its states on some text, and what its layer 1 ends in."""
    anatomy = Anatomy(make_model(family))
    states = anatomy.trace(draw_stream(16, 64).tokens_NT)
    outlet = anatomy.find_output_projection(1)
    assert isinstance(outlet, NormedProjection)
    return anatomy, states, outlet


def test_a_known_change_of_projection_and_norm_is_found_and_leaves_the_model_as_it_was() -> None:
    anatomy, states, outlet = open_layer("gemma2")
    generator = torch.Generator().manual_seed(0)
    size = float(outlet.projection.module.get_parameter("weight").std())
    change = 0.5 * size * torch.randn(outlet.num_inputs, 32, generator=generator)
    with torch.no_grad(), outlet.folded(change, None, torch.linspace(-0.5, 0.5, 32)):
        wanted = anatomy.run_layer(1, states[1])
    gains = measure_gains(anatomy, states)
    assert gains is not None
    found = SharedMaps(anatomy, [[*states[:3], wanted, states[4]]], gains=gains).find((1, 3))[1]
    with torch.no_grad(), outlet.folded(found.weight, found.bias, found.scale):
        output = anatomy.run_layer(1, states[1])
    assert float((output - wanted).norm()) < 0.15 * float((states[2] - wanted).norm())
    assert torch.equal(anatomy.run_layer(1, states[1]), states[2])


def test_a_norm_that_takes_the_mean_away_is_not_understood() -> None:
    anatomy, states, _ = open_layer("olmo2")
    assert measure_gains(anatomy, states) is not None
    anatomy.layers[1].post_feedforward_layernorm = nn.LayerNorm(32)
    assert measure_gains(anatomy, states) is None
