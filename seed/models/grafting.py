"""Graft a recovered model into the original's skeleton, so that its layers go by their original indices."""

import copy

import torch
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy, Gap, text_config
from seed.models.surgery import LEADING_COUNTS, REMAPPED_LISTS, SLICED_LISTS, view_layers
from seed.records import Candidate

LAYER_FIELDS = ("num_hidden_layers", *SLICED_LISTS, *REMAPPED_LISTS, *LEADING_COUNTS)


@torch.no_grad()
def graft(anatomy: Anatomy, recovered: nn.Module, candidate: Candidate) -> Anatomy:
    """Return the recovered model with its layers at their original indices, and gaps where the others were.

    Args:
        anatomy: the original model; neither changed nor shared with what is returned.
        recovered: the model of the candidate's kept layers, as ``load_checkpoint`` opens it; its weights are copied
            and converted to the original's type.
        candidate: which layers of the original it kept.

    Raises:
        ModelError: it is not a model of these layers of this original.
    """
    gone = f"layer {', '.join(map(str, candidate.dropped_layers))}" if candidate.dropped_layers else "nothing"
    place = f"the recovered {type(recovered).__name__} without {gone}"
    grafted = Anatomy(copy.deepcopy(anatomy.model))
    with view_layers(grafted, candidate) as view:
        _check_config(view, recovered, place=place)
        weights = recovered.state_dict()
        try:
            view.load_state_dict(weights)
        except RuntimeError as error:  # its message begins with the class and lists what is wrong
            wrong = " ".join(str(error).split()[:60])
            raise ModelError(
                f"{place}: its weights do not fit the original model's ({wrong}). Give a model that was recovered from "
                "this original."
            ) from error
        for name, weight in view.state_dict().items():
            if not torch.equal(weight, weights[name].to(weight)):
                raise ModelError(
                    f"{place}: {name} is tied to another weight in the original model, but has values of its own. "
                    "Give a model that was recovered from this original."
                )
    # How layers return their states is seen when one runs.
    grafted.run_layers(torch.zeros(1, 2, dtype=torch.long, device=grafted.device))
    for layer in candidate.dropped_layers:
        grafted.layers[layer] = Gap(returns_tuple=grafted.returns_tuple, like=grafted.layers[layer])
    return grafted


def _check_config(view: nn.Module, recovered: nn.Module, *, place: str) -> None:
    """Layers of equal shapes may be of different kinds: windows, positions, experts."""
    wanted, found = text_config(view), text_config(recovered)
    for name in LAYER_FIELDS:
        expected, actual = (_plain(getattr(config, name, None)) for config in (wanted, found))
        if expected != actual:
            raise ModelError(
                f"{place}: its config says {name} = {actual}, but these layers of the original model have {expected}. "
                "Give the model that was recovered without these very layers."
            )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value
