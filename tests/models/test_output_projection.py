"""What ends a layer is found, corrections are computed from the right numbers, and folded into every weight that writes."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from seed.models.anatomy import Anatomy
from seed.models.output_projection import Mixture
from tests.interrupting import StoppedError
from tests.models.families import CONFIGS, make_model, make_tokens, scramble

WIDTH = 32


def draw(*shape: int, rng_seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng_seed))


def open_mixture(family: str) -> tuple[Mixture, tuple[Anatomy, int, Tensor]]:
    """A family's last mixture, and how to run its layer."""
    anatomy = Anatomy(make_model(family))
    states = anatomy.trace(make_tokens())
    layer = max(i for i in range(4) if isinstance(anatomy.find_output_projection(i), Mixture))
    found = anatomy.find_output_projection(layer)
    assert isinstance(found, Mixture)
    return found, (anatomy, layer, states[layer])


def run(place: tuple[Anatomy, int, Tensor]) -> Tensor:
    anatomy, layer, hidden = place
    with torch.no_grad():
        return anatomy.run_layer(layer, hidden)


@pytest.mark.parametrize(
    ("family", "writers"),
    [
        ("mixtral", {"experts.down_proj": -2}),
        ("gpt_oss", {"experts.down_proj": -1, "experts.down_proj_bias": -1}),
        ("jetmoe", {"output_linear.weight": -2, "bias": -1}),
        ("llama4_text", {"experts.down_proj": -1, "shared_expert.down_proj.weight": -2}),
        ("qwen2_moe", {"experts.down_proj": -2, "shared_expert.down_proj.weight": -2}),
        ("hunyuan_v1_moe", {"experts.down_proj": -2, "shared_mlp.down_proj.weight": -2}),
    ],
)
def test_all_that_writes_in_a_mixture_is_found_and_a_map_folded_into_it(family: str, writers: dict[str, int]) -> None:
    mixture, place = open_mixture(family)
    assert mixture.writers == writers
    assert mixture.num_inputs == WIDTH
    assert mixture.is_whole(lambda: run(place))
    for name in writers:  # of which one is missing
        rest = {other: dim for other, dim in writers.items() if other != name}
        broken = Mixture(module=mixture.module, num_inputs=WIDTH, writers=rest)
        assert not broken.is_whole(lambda: run(place)), name
    weight = 0.1 * draw(WIDTH, WIDTH).double()
    with mixture.record_inputs() as before:
        run(place)
    mixture.fold(weight, None)
    with mixture.record_inputs() as after:
        run(place)
    wanted = before[0].double() + before[0].double() @ weight
    assert float((wanted - before[0]).norm()) > 0.1 * float(before[0].norm())
    assert torch.allclose(after[0].double(), wanted, atol=1e-5)


def test_experts_as_wide_as_the_states_are_folded_the_right_way_round() -> None:
    config = AutoConfig.for_model("gpt_oss", **CONFIGS["gpt_oss"] | {"intermediate_size": WIDTH})
    anatomy = Anatomy(scramble(AutoModelForCausalLM.from_config(config)))
    place = (anatomy, 1, anatomy.trace(make_tokens())[1])
    mixture = anatomy.find_output_projection(1)
    assert isinstance(mixture, Mixture)
    assert mixture.writers["experts.down_proj"] == -1
    assert mixture.is_whole(lambda: run(place))


# llama4's mixture returns its router's scores beside the states
@pytest.mark.parametrize("family", ["llama", "llama4_text"])
def test_what_is_added_reaches_the_layer_while_the_block_runs_only(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    place = (anatomy, 1, anatomy.trace(make_tokens())[1])
    outlet = anatomy.find_output_projection(1)
    assert outlet is not None
    plain, change = run(place), draw(2, 24, WIDTH)
    with outlet.add(change):
        assert torch.allclose(run(place), plain + change, atol=1e-5)
    with pytest.raises(StoppedError), outlet.add(change):
        raise StoppedError
    assert torch.equal(run(place), plain)
