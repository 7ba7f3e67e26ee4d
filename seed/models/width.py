"""Cut a model evenly in width: all layers stay, each with fewer MLP neurons and attention heads.

The baseline that dropping layers is compared with. ``find_widths`` says what can be cut and still be stated by a plain
config, ``plan_width`` fits an even cut to a number of parameters, ``make_narrow`` builds it.

Shapes: L layers, F MLP neurons, H attention heads, K key and value heads.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from seed.errors import ModelError
from seed.models.anatomy import Anatomy, count_params
from seed.models.output_projection import find_projection
from seed.records import WidthCut

MLP_FIELDS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
ATTENTION_INPUT_NAMES = {"q_proj": "num_heads", "k_proj": "num_kv_heads", "v_proj": "num_kv_heads"}
ATTENTION_OUTPUT_NAMES = ("o_proj", "out_proj", "dense")
# GPUs are slow at odd widths: wide MLPs are cut in steps of a power of two, at most this part of their width.
STEPS = 256
CURE = "Leave the width cut out of the comparison, or choose another model."


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A parameter of every layer, and what one of its dimensions runs over."""

    name: str  # within the layer: mlp.down_proj.weight
    dim: int
    unit: str  # a width of ``WidthCut``: mlp_width, num_heads or num_kv_heads


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What an even cut may change in one model, and where it lies."""

    dense: WidthCut
    num_params: int  # of the dense model, tied ones once
    mlp_field: str  # of the config
    mlp_reader: str  # within a layer: the projection that reads the neurons
    attention_reader: str | None  # the projection that reads what the heads found; None: heads stay
    axes: tuple[Axis, ...]
    unit_params: dict[str, int]  # what a neuron, a head or a KV head weighs, over all layers
    head_choices: tuple[tuple[int, int], ...]  # (heads, KV heads) that a plain config can state, most heads first
    heads_stay_because: str | None  # None: they can be cut

    def count_params(self, cut: WidthCut) -> int:
        """Parameters of the narrow model, tied ones once."""
        lost = sum(
            weight * (getattr(self.dense, unit) - getattr(cut, unit)) for unit, weight in self.unit_params.items()
        )
        return self.num_params - int(lost)

    def attention_share(self, cut: WidthCut) -> float:
        """What a cut keeps of the attention's parameters; 1 where heads stay."""
        units = [unit for unit in self.unit_params if unit != "mlp_width"]
        kept, full = (sum(self.unit_params[unit] * getattr(of, unit) for unit in units) for of in (cut, self.dense))
        return kept / full if units else 1.0


@dataclass(frozen=True, kw_only=True)
class WidthImportance:
    """What each layer's neurons and heads are worth; only their order within a layer counts."""

    neurons_LF: Tensor
    heads_LH: Tensor | None  # None: heads stay


def find_widths(anatomy: Anatomy) -> Widths:
    """Find the widths that can be cut such that plain ``from_pretrained`` opens the result.

    Proven on empty models of narrower configs: every shape must be the one expected. Where heads cannot be cut the
    MLP still can, and ``heads_stay_because`` says why.

    Raises:
        ModelError: the MLP cannot be cut.
    """
    name = type(anatomy.model).__name__
    try:
        widths = _find_neurons(anatomy)
        narrower = replace(widths.dense, mlp_width=max(1, widths.dense.mlp_width // 2))
        _prove(anatomy, widths, narrower)
    except _Unfit as reason:
        raise ModelError(f"{name}: its MLPs cannot be cut in width, since {reason}. {CURE}") from reason
    try:
        return _add_heads(anatomy, widths)
    except _Unfit as reason:
        return dataclasses.replace(widths, heads_stay_because=str(reason))


def plan_width(anatomy: Anatomy, *, num_params: int) -> WidthCut:
    """Return the even cut whose number of parameters comes closest to ``num_params``.

    Attention goes to the nearest share that the config can state, and MLP neurons make up the rest: to one neuron, or
    to a 256th of the width where MLPs are wide.

    Raises:
        ModelError: no cut has so few or so many parameters.
    """
    widths = find_widths(anatomy)
    dense, units = widths.dense, widths.unit_params
    step = 2 ** int(math.log2(max(1, dense.mlp_width // STEPS)))
    share = 1 - (widths.num_params - num_params) / sum(count * getattr(dense, unit) for unit, count in units.items())
    gaps: dict[WidthCut, float] = {}  # between attention's share and the whole's
    for num_heads, num_kv_heads in widths.head_choices:
        whole = replace(dense, num_heads=num_heads, num_kv_heads=num_kv_heads)
        wanted = dense.mlp_width - (widths.count_params(whole) - num_params) / units["mlp_width"]
        mlp_width = min(step * round(wanted / step), dense.mlp_width)
        if step <= mlp_width and wanted <= dense.mlp_width:
            gaps[replace(whole, mlp_width=mlp_width)] = abs(widths.attention_share(whole) - share)
    if not gaps:
        least = min(
            widths.count_params(replace(dense, mlp_width=step, num_heads=heads, num_kv_heads=kv_heads))
            for heads, kv_heads in widths.head_choices
        )
        raise ModelError(
            f"{type(anatomy.model).__name__}: cut in width it keeps {least:,} to {widths.num_params:,} parameters, and "
            f"{num_params:,} were wanted. Compare it with fewer dropped layers."
        )
    # of two that are as near, to a percent, the one with more heads
    return min(gaps, key=lambda cut: round(gaps[cut], 2))


@torch.no_grad()
def make_narrow(anatomy: Anatomy, cut: WidthCut, importance: WidthImportance) -> nn.Module:
    """Return a standalone model with the most important neurons and heads of each layer, in their order; ties stay tied.

    Whole KV groups go where the cut has fewer KV heads; a group is worth the L2 norm of its heads. Where it has as
    many, the least important heads of every group go.
    """
    widths = find_widths(anatomy)
    assert (cut.num_heads, cut.num_kv_heads) in widths.head_choices, "a cut that the config can state"
    assert 1 <= cut.mlp_width <= widths.dense.mlp_width
    narrow: Any = _build_empty(anatomy.model, _narrow_config(anatomy, widths, cut))
    prefix = _layers_prefix(anatomy)
    state = {name: weight.detach() for name, weight in anatomy.model.state_dict().items()}
    for layer in range(anatomy.num_layers):
        kept = _choose_units(widths, cut, importance, layer)
        for axis in widths.axes:
            name = f"{prefix}{layer}.{axis.name}"
            size = state[name].shape[axis.dim] // getattr(widths.dense, axis.unit)
            rows = (kept[axis.unit][:, None] * size + torch.arange(size)).flatten()
            state[name] = state[name].index_select(axis.dim, rows.to(state[name].device))
    narrow.load_state_dict({name: weight.clone() for name, weight in state.items()}, assign=True)
    narrow.tie_weights()
    for name, buffer in anatomy.model.named_buffers():
        if name not in state:  # not stored: rotary frequencies, masks
            owner, _, leaf = name.rpartition(".")
            setattr(narrow.get_submodule(owner), leaf, buffer.detach().clone())
    if hasattr(anatomy.model, "generation_config"):
        narrow.generation_config = copy.deepcopy(anatomy.model.generation_config)
    result: nn.Module = narrow.eval().requires_grad_(False)
    return result


def weight_by_input(projection: nn.Module) -> Tensor:
    """A projection's weight with one row for each number that it reads."""
    weight = projection.get_parameter("weight")
    return weight if isinstance(projection, Conv1D) else weight.T


class _Unfit(Exception):  # noqa: N818  a reason, put into a sentence by whoever catches it
    """Why something cannot be cut."""


def _find_neurons(anatomy: Anatomy) -> Widths:
    layer = anatomy.layers[0]
    reader = find_projection(layer)
    if any("experts" in path for module in anatomy.layers for path, _ in module.named_modules()):
        raise _Unfit("they are mixtures of experts")
    if not isinstance(reader, (nn.Linear, Conv1D)):
        raise _Unfit("the projection that reads the neurons was not found")
    path = next(path for path, module in layer.named_modules() if module is reader)
    mlp_width = reader.weight.shape[_input_dim(reader)]
    axes = [Axis(name=f"{path}.weight", dim=_input_dim(reader), unit="mlp_width")]
    around = path.rpartition(".")[0]
    for leaf, module in layer.get_submodule(around).named_children():
        if module is not reader and isinstance(module, (nn.Linear, Conv1D)) and _count_outputs(module) == mlp_width:
            axes += _output_axes(module, f"{around}.{leaf}".lstrip("."), unit="mlp_width")
    if len(axes) == 1:
        raise _Unfit(f"no projection of its own writes the {mlp_width} neurons (fused or shared with other parts)")
    field = next((name for name in MLP_FIELDS if getattr(anatomy.config, name, 0) in (mlp_width, None)), None)
    if field is None:
        raise _Unfit(f"no field of the config states their width of {mlp_width} (looked for {', '.join(MLP_FIELDS)})")
    num_heads = getattr(anatomy.config, "num_attention_heads", None)
    if not isinstance(num_heads, int):
        raise _Unfit("the config states no number of attention heads")
    num_kv_heads = int(getattr(anatomy.config, "num_key_value_heads", None) or num_heads)
    return Widths(
        dense=WidthCut(
            num_layers=anatomy.num_layers, mlp_width=mlp_width, num_heads=num_heads, num_kv_heads=num_kv_heads
        ),
        num_params=count_params(anatomy.model),
        mlp_field=field,
        mlp_reader=path,
        attention_reader=None,
        axes=tuple(axes),
        unit_params={"mlp_width": _count_params(anatomy, axes) // mlp_width},
        head_choices=((num_heads, num_kv_heads),),
        heads_stay_because=None,
    )


def _add_heads(anatomy: Anatomy, widths: Widths) -> Widths:
    layer, dense = anatomy.layers[0], widths.dense
    leaves = {path: {name for name, _ in module.named_children()} for path, module in layer.named_modules()}
    path = next((path for path, names in leaves.items() if ATTENTION_INPUT_NAMES.keys() <= names), None)
    output = next((name for name in ATTENTION_OUTPUT_NAMES if path is not None and name in leaves[path]), None)
    if path is None or output is None:
        raise _Unfit("queries, keys and values have no projections of their own (q_proj, k_proj, v_proj)")
    projections: dict[str, Any] = dict(layer.get_submodule(path).named_children())
    found = [projections[name] for name in (output, *ATTENTION_INPUT_NAMES)]
    if not all(isinstance(module, (nn.Linear, Conv1D)) for module in found):
        raise _Unfit("the attention's projections are not plain linear maps")
    inputs = projections[output].weight.shape[_input_dim(projections[output])]
    axes = [Axis(name=f"{path}.{output}.weight", dim=_input_dim(projections[output]), unit="num_heads")]
    for name, unit in ATTENTION_INPUT_NAMES.items():
        if _count_outputs(projections[name]) * dense.num_heads != inputs * getattr(dense, unit):
            raise _Unfit(f"{name} does not write heads as wide as {output} reads")
        axes += _output_axes(projections[name], f"{path}.{name}", unit=unit)
    params = {
        unit: _count_params(anatomy, [axis for axis in axes if axis.unit == unit]) // getattr(dense, unit)
        for unit in ("num_heads", "num_kv_heads")
    }
    per_group = dense.num_heads // dense.num_kv_heads
    groups_cut = [(kept * per_group, kept) for kept in range(dense.num_kv_heads - 1, 0, -1)]
    heads_cut = [(kept * dense.num_kv_heads, dense.num_kv_heads) for kept in range(per_group - 1, 0, -1)]
    with_heads = dataclasses.replace(
        widths,
        attention_reader=f"{path}.{output}",
        axes=(*widths.axes, *axes),
        unit_params=widths.unit_params | params,
    )
    smaller = sorted({*groups_cut, *heads_cut}, reverse=True)
    choices = [choice for choice in smaller if _is_valid(anatomy, with_heads, choice)]
    if not choices:
        raise _Unfit("the config allows no smaller number of heads at the same hidden size")
    heads, kv_heads = choices[0]
    _prove(anatomy, with_heads, replace(dense, num_heads=heads, num_kv_heads=kv_heads))
    return dataclasses.replace(with_heads, head_choices=(*widths.head_choices, *choices))


def _is_valid(anatomy: Anatomy, widths: Widths, choice: tuple[int, int]) -> bool:
    """Does the config open again with so many heads? Llama's wants a divisor of the hidden size, for one."""
    try:
        _narrow_config(anatomy, widths, replace(widths.dense, num_heads=choice[0], num_kv_heads=choice[1]))
    except _Unfit:
        return False
    return True


def _prove(anatomy: Anatomy, widths: Widths, cut: WidthCut) -> None:
    """Raise unless an empty model of the narrow config differs from the dense one as the axes say, and only so."""
    try:
        empty = _build_empty(anatomy.model, _narrow_config(anatomy, widths, cut))
    except _Unfit:
        raise
    except Exception as error:  # an unknown family fails in ways of its own
        raise _Unfit(f"its narrower config builds no model ({type(error).__name__}: {error})") from error
    found, expected = _read_shapes(empty), _read_shapes(anatomy.model)
    for layer in range(anatomy.num_layers):
        for axis in widths.axes:
            name = f"{_layers_prefix(anatomy)}{layer}.{axis.name}"
            shape = list(anatomy.layers[0].get_parameter(axis.name).shape)
            if expected.get(name) != tuple(shape):
                raise _Unfit(f"layers are not all alike ({name} is {expected.get(name)} and in the first {shape})")
            shape[axis.dim] = shape[axis.dim] // getattr(widths.dense, axis.unit) * getattr(cut, axis.unit)
            expected[name] = tuple(shape)
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise _Unfit(f"with a narrower config {name} is {found.get(name)} where {expected.get(name)} is wanted")


def _read_shapes(model: nn.Module) -> dict[str, Any]:
    """Shapes of parameters and buffers, and the modules' own numbers: a scale must not follow the number of heads."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    scales = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, float)
    }
    return {name: tuple(tensor.shape) for name, tensor in tensors} | scales


def _narrow_config(anatomy: Anatomy, widths: Widths, cut: WidthCut) -> Any:
    """The dense model's config with narrower fields, and proof that it opens again."""
    config: Any = copy.deepcopy(anatomy.model.config)
    text = config.get_text_config()
    changes = {widths.mlp_field: cut.mlp_width}
    if widths.attention_reader is not None:
        reader: Any = anatomy.layers[0].get_submodule(widths.attention_reader)
        changes["head_dim"] = reader.weight.shape[_input_dim(reader)] // widths.dense.num_heads
        changes["num_attention_heads"] = cut.num_heads
        if hasattr(text, "num_key_value_heads"):
            changes["num_key_value_heads"] = cut.num_kv_heads
    aliases = getattr(type(text), "attribute_map", {}) or {}
    for name, value in changes.items():
        text.__dict__[aliases.get(name, name)] = value  # past setattr, which validates each step
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:  # each family has its own rules
        raise _Unfit(f"its narrower config is not valid ({error})") from error
    return config


def _build_empty(model: nn.Module, config: Any) -> nn.Module:
    """A model of the same class without weights."""
    with torch.device("meta"):
        empty: nn.Module = type(model)(config)
    return empty


def _choose_units(widths: Widths, cut: WidthCut, importance: WidthImportance, layer: int) -> dict[str, Tensor]:
    """Indices of one layer's kept neurons, heads and KV heads, in order."""
    kept = {"mlp_width": _keep_best(importance.neurons_LF[layer], cut.mlp_width)}
    if importance.heads_LH is not None:
        heads_KG = importance.heads_LH[layer].unflatten(0, (widths.dense.num_kv_heads, -1))
        groups = _keep_best(heads_KG.norm(dim=-1), cut.num_kv_heads)
        per_group = cut.num_heads // cut.num_kv_heads
        kept["num_kv_heads"] = groups
        kept["num_heads"] = torch.cat(
            [group * heads_KG.shape[1] + _keep_best(heads_KG[group], per_group) for group in groups]
        )
    return kept


def _keep_best(scores: Tensor, count: int) -> Tensor:
    return scores.cpu().argsort(descending=True, stable=True)[:count].sort().values


def _layers_prefix(anatomy: Anatomy) -> str:
    """What the names of the layers' parameters begin with: ``model.layers.``."""
    owner = next(name for name, module in anatomy.model.named_modules() if module is anatomy.owner)
    return f"{owner}.{anatomy.attribute}.".lstrip(".")


def _count_params(anatomy: Anatomy, axes: list[Axis]) -> int:
    """Of all layers, which are alike: ``_prove`` sees to that."""
    return anatomy.num_layers * sum(anatomy.layers[0].get_parameter(axis.name).numel() for axis in axes)


def _output_axes(module: Any, path: str, *, unit: str) -> list[Axis]:
    weight = Axis(name=f"{path}.weight", dim=1 - _input_dim(module), unit=unit)
    return [weight] if module.bias is None else [weight, Axis(name=f"{path}.bias", dim=0, unit=unit)]


def _input_dim(module: nn.Module) -> int:
    return 0 if isinstance(module, Conv1D) else 1


def _count_outputs(module: Any) -> int:
    return int(module.weight.shape[1 - _input_dim(module)])
