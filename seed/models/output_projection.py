"""Where a layer last writes into the residual stream, and how a linear change of what it writes goes into its weights.

A dense MLP ends in one projection: what is added is computed from what that projection reads. A mixture of experts ends
in many, which a router mixes: what is added is computed from what the mixture as a whole writes, and every weight that
writes a part of it is multiplied (a linear map of a mixture is the mixture of the mapped experts). Some families add what
a norm makes of the projection's output: there the projection and the norm's weight are changed together.

Shapes: B sequences, T tokens, D hidden width, F numbers that a correction is computed from, for each token.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

# What families call the projection that ends an MLP, and the MLP.
PROJECTION_NAMES = (
    "down_proj",
    "dense_4h_to_h",
    "c_proj",
    "fc2",
    "fc_out",
    "w2",
    "proj_out",
    "dense2",
    "lin2",
    "wo",
    "Wo",
    "out_proj",
    "o_proj",
)
MLP_NAMES = ("mlp", "mixer", "feed_forward", "ffn", "block_sparse_moe", "feedforward")
# What families call a norm between the MLP and the residual stream.
NORM_NAMES = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_ffn_norm", "post_norm2")
# and what those call the norm between attention and the residual stream
ATTENTION_NORMS = {
    "post_feedforward_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_self_attn_layernorm",
    "post_ffn_norm": "post_attention_norm",
    "post_norm2": "post_norm1",
}
# What families call the projection that ends attention.
ATTENTION_PROJECTION_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo", "out_lin")
# What ends an expert, be it one of many or one that all tokens share.
EXPERT_NAMES = ("down_proj", "output_linear")


@dataclass(frozen=True, kw_only=True)
class OutputProjection(ABC):
    """The module whose output reaches the residual stream last; ``num_inputs`` is F."""

    module: nn.Module
    num_inputs: int
    has_bias: bool

    @abstractmethod
    def record_inputs(self) -> contextlib.AbstractContextManager[list[Tensor]]:
        """Yield a list that what corrections are computed from, (..., F), is added to, call by call, while the block runs."""

    @abstractmethod
    def fold(self, weight_FD: Tensor, bias_D: Tensor | None, scale_D: Tensor | None = None) -> None:
        """Let the module write ``inputs @ weight_FD + bias_D`` in addition, by changing its weights in place.

        ``scale_D``: what is added to the multipliers of the norm behind it, where there is one.
        """

    @abstractmethod
    def silence(self) -> None:
        """Let the module write zeros, by changing its weights in place."""

    def is_whole(self, run: Callable[[], Any]) -> bool:
        """Do the weights that ``fold`` changes write all that the module writes? ``run`` calls the module, once at least."""
        return True

    @contextlib.contextmanager
    def add(self, change_BTD: Tensor) -> Iterator[None]:
        """Let the module write that in addition while the block runs."""
        with self.module.register_forward_hook(
            lambda _module, _args, output: _replace(output, written_by(output) + change_BTD.view_as(written_by(output)))
        ):
            yield


class Projection(OutputProjection):
    """One projection, from F to D."""

    @contextlib.contextmanager
    def record_inputs(self) -> Iterator[list[Tensor]]:
        inputs: list[Tensor] = []
        with self.module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].detach())):
            yield inputs

    @torch.no_grad()
    def fold(self, weight_FD: Tensor, bias_D: Tensor | None, scale_D: Tensor | None = None) -> None:
        assert scale_D is None, "no norm follows"
        weight = self.module.get_parameter("weight")
        weight.copy_(weight.double() + (weight_FD.T if isinstance(self.module, nn.Linear) else weight_FD))
        if bias_D is not None:
            bias = self.module.get_parameter("bias")
            bias.copy_(bias.double() + bias_D)

    @torch.no_grad()
    def silence(self) -> None:
        for parameter in self.module.parameters():
            parameter.zero_()


@dataclass(frozen=True, kw_only=True)
class NormedProjection(OutputProjection):
    """A projection, from F to D, behind which a norm stands that divides by the root mean square and multiplies by channel."""

    projection: Projection

    @property
    def multipliers(self) -> Tensor:
        """What the norm multiplies each channel by (D): its weight, in some families plus one."""
        weight = self.module.get_parameter("weight")
        multipliers: Tensor = self.module(torch.ones_like(weight))
        return multipliers

    def record_inputs(self) -> contextlib.AbstractContextManager[list[Tensor]]:
        return self.projection.record_inputs()

    @torch.no_grad()
    def fold(self, weight_FD: Tensor, bias_D: Tensor | None, scale_D: Tensor | None = None) -> None:
        self.projection.fold(weight_FD, bias_D)
        if scale_D is not None:
            weight = self.module.get_parameter("weight")
            weight.copy_(weight.double() + scale_D)

    def silence(self) -> None:
        self.projection.silence()

    @contextlib.contextmanager
    def folded(self, weight_FD: Tensor, bias_D: Tensor | None, scale_D: Tensor | None) -> Iterator[None]:
        """Let the weights be as ``fold`` makes them while the block runs."""
        changed = [*self.projection.module.parameters(), *self.module.parameters()]
        before = [parameter.data for parameter in changed]
        try:
            for parameter in changed:
                parameter.data = parameter.data.clone()
            self.fold(weight_FD, bias_D, scale_D)
            yield
        finally:
            for parameter, data in zip(changed, before, strict=True):
                parameter.data = data

    @torch.no_grad()
    def is_whole(self, run: Callable[[], Any]) -> bool:
        written: list[Tensor] = []
        with (
            self.projection.module.register_forward_hook(lambda _module, _args, output: written.append(output)),
            self.module.register_forward_pre_hook(lambda _module, args: written.append(args[0])),
        ):
            run()
        if len(written) != 2 or not torch.equal(*written):
            return False
        unit = normalize(written[0].float()).to(written[0].dtype)
        plain, multipliers_D = self.module(unit), self.multipliers
        more = {"weight": self.module.get_parameter("weight") + 1}
        moved = functional_call(self.module, more, (4 * unit,))  # the scale of what comes must make no difference
        bound = 1e-3 if unit.dtype == torch.float32 else 3e-2
        expected = ((plain, unit * multipliers_D), (moved, unit * (multipliers_D + 1)))
        return all(bool((found - wanted).norm() <= bound * wanted.norm()) for found, wanted in expected)


def measure_size(written_BTD: Tensor) -> Tensor:
    """Root mean square over the channels (B, T, 1)."""
    return written_BTD.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def normalize(written_BTD: Tensor) -> Tensor:
    """Divide by the root mean square over the channels."""
    return written_BTD / measure_size(written_BTD)


@dataclass(frozen=True, kw_only=True)
class Mixture(OutputProjection):
    """A mixture of experts: F is D, and no constant can be added, since it would be added once for each expert."""

    has_bias: bool = field(default=False, init=False)
    # the module's parameters that write a part of its output, each with its dimension of size D, counted from the end
    writers: dict[str, int]

    @contextlib.contextmanager
    def record_inputs(self) -> Iterator[list[Tensor]]:
        outputs: list[Tensor] = []
        with self.module.register_forward_hook(
            lambda _module, _args, output: outputs.append(written_by(output).detach())
        ):
            yield outputs

    @torch.no_grad()
    def fold(self, weight_FD: Tensor, bias_D: Tensor | None, scale_D: Tensor | None = None) -> None:
        assert bias_D is None, "a mixture has no bias of its own"
        assert scale_D is None, "no norm follows"
        for name, dim in self.writers.items():
            weight = self.module.get_parameter(name)
            for part in weight if weight.ndim == 3 else [weight]:  # one expert at a time: float64 is large
                written = part.double().movedim(dim, -1)
                part.copy_((written + written @ weight_FD).movedim(-1, dim))

    @torch.no_grad()
    def silence(self) -> None:
        for name in self.writers:
            self.module.get_parameter(name).zero_()

    @torch.no_grad()
    def is_whole(self, run: Callable[[], Any]) -> bool:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with self.module.register_forward_pre_hook(lambda _m, *call: calls.append(call), with_kwargs=True):
            run()
        args, kwargs = calls[0]
        # Twice the even channels of the weights must be twice those of the output, no more, no less; doubling is exact.
        scales_D = torch.ones(self.num_inputs, device=next(self.module.parameters()).device)
        scales_D[::2] = 2
        scaled = {}
        for name, dim in self.writers.items():
            weight = self.module.get_parameter(name)
            scaled[name] = (weight.movedim(dim, -1) * scales_D.to(weight.dtype)).movedim(-1, dim)
        plain = written_by(self.module(*args, **kwargs))
        moved = written_by(functional_call(self.module, scaled, args, kwargs))
        return torch.allclose(moved, plain * scales_D.to(plain.dtype), rtol=1e-3, atol=1e-6)


def find_output_projection(layer: nn.Module, *, width: int) -> OutputProjection | None:
    """Return what writes into the residual stream last in this layer, or None where that is not known."""
    projection = _describe(find_projection(layer), width)
    norm = next((getattr(layer, name) for name in NORM_NAMES if hasattr(getattr(layer, name, None), "weight")), None)
    mixture = _find_mixture(layer, width)
    if mixture is not None or projection is None or norm is None:
        return mixture or projection
    return NormedProjection(
        module=norm, num_inputs=projection.num_inputs, has_bias=projection.has_bias, projection=projection
    )


def find_attention_projection(layer: nn.Module, name: str, *, width: int) -> OutputProjection | None:
    """Return what writes into the residual stream last in this layer's attention, its child of that name, or None."""
    found = next(
        (
            module
            for path, module in layer.get_submodule(name).named_modules()
            if path.rpartition(".")[2] in ATTENTION_PROJECTION_NAMES and getattr(module, "weight", None) is not None
        ),
        None,
    )
    projection = _describe(found, width)
    behind = next((ATTENTION_NORMS[after] for after in NORM_NAMES if hasattr(layer, after)), None)
    norm = getattr(layer, behind, None) if behind is not None else None
    if projection is None or norm is None:
        return projection
    return NormedProjection(
        module=norm, num_inputs=projection.num_inputs, has_bias=projection.has_bias, projection=projection
    )


def find_projection(layer: nn.Module) -> nn.Module | None:
    """Return the projection that ends a layer's dense MLP, or None."""
    named: Iterator[tuple[str, nn.Module]] = layer.named_modules()
    for name, module in named:
        parent, _, leaf = name.rpartition(".")
        inside_mlp = parent.rpartition(".")[2] in MLP_NAMES or parent == ""
        weight = getattr(module, "weight", None)
        if inside_mlp and leaf in PROJECTION_NAMES and weight is not None and weight.ndim == 2:
            return module
    return None


def written_by(output: Any) -> Tensor:
    """The hidden states in what a module returned; some return more beside them, such as a router's scores."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(hidden, Tensor)
    return hidden


def _replace(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _describe(projection: nn.Module | None, width: int) -> Projection | None:
    if projection is None:
        return None
    num_inputs = projection.get_parameter("weight").numel() // width
    return Projection(module=projection, num_inputs=num_inputs, has_bias=getattr(projection, "bias", None) is not None)


def _find_mixture(layer: nn.Module, width: int) -> Mixture | None:
    for name, block in layer.named_children():
        writers = {path: weight for path, weight in block.named_parameters() if _is_writer(path)}
        if name in MLP_NAMES and any(weight.ndim == 3 for weight in writers.values()):
            dims = {path: _find_dim(block, path, width) for path in writers}
            return Mixture(module=block, num_inputs=width, writers=dims)
    return None


def _is_writer(path: str) -> bool:
    """Does a mixture's parameter write a part of its output, going by its name?"""
    name = path.removesuffix(".weight").removesuffix(".bias").removesuffix("_bias")
    return name == "bias" or name.rpartition(".")[2] in EXPERT_NAMES


def _find_dim(block: nn.Module, path: str, width: int) -> int:
    """The dimension that a parameter writes, counted from its end: of (E, D, F), (E, F, D), (D, F), (E, D) or (D)."""
    weight, owner = block.get_parameter(path), block.get_submodule(path.rpartition(".")[0])
    if path.endswith("bias"):
        return -1
    is_transposed = weight.ndim == 3 and (getattr(owner, "is_transposed", False) or weight.shape[1] != width)
    return -1 if is_transposed else -2
