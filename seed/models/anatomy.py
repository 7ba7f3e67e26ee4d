"""Understand a causal LM without knowing its family: its layers, what each is called with, its head.

Shapes: B sequences, T tokens, D hidden width, V vocabulary.
"""

import contextlib
import copy
import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from seed.errors import ModelError
from seed.models.output_projection import (
    MLP_NAMES,
    OutputProjection,
    find_attention_projection,
    find_output_projection,
    written_by,
)
from seed.records import KIND_WORDS, KINDS, Candidate

INDEX_NAMES = ("layer_idx", "layer_id", "layer_number")
# What families call a layer's attention.
ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """What one layer is called with besides the hidden states, for batches of one shape."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_name: str | None  # None when the hidden states come as the first positional argument


class _Reached(Exception):  # noqa: N818  it is no error: the rest of a forward pass is not wanted
    """Carries hidden states out of a forward pass that has gone far enough."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        super().__init__()
        self.hidden_BTD = hidden_BTD


class Gap(nn.Module):
    """Stands where a layer was: hands the hidden states on in the form the family's layers return them.

    ``states``: handed on instead of those that come, in the place of all layers.
    """

    def __init__(self, *, returns_tuple: bool, like: nn.Module, states: Tensor | None = None) -> None:
        super().__init__()
        self.returns_tuple, self.states = returns_tuple, states
        for name in ("attention_type", "layer_type", "block_type", "is_attention_layer", "layer_idx"):
            if hasattr(like, name):  # decoders ask the layer itself which mask it wants
                setattr(self, name, getattr(like, name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden_BTD = args[0] if args else kwargs["hidden_states"]
        if self.states is not None:
            hidden_BTD = self.states
        return (hidden_BTD, None) if self.returns_tuple else hidden_BTD


class Absent(nn.Module):
    """Stands where a layer's attention or MLP was: writes nothing.

    Attention counts tokens in the cache, where the model looks how many there were: one number each, instead of keys and values.
    """

    def __init__(self, kind: str, *, num_outputs: int | None, like: nn.Module) -> None:
        """``num_outputs``: of the tuple that it returns; None: it returns a tensor alone."""
        super().__init__()
        self.kind, self.num_outputs = kind, num_outputs
        for name in INDEX_NAMES:
            if isinstance(index := getattr(like, name, None), int):
                setattr(self, name, index)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden_BTD = args[0] if args else kwargs["hidden_states"]
        for cache in (*args, *kwargs.values()):
            if isinstance(cache, Cache):
                index = next(getattr(self, name) for name in INDEX_NAMES if hasattr(self, name))
                cache.update(*[hidden_BTD.new_zeros(len(hidden_BTD), 1, hidden_BTD.shape[1], 1)] * 2, index)
        nothing = torch.zeros_like(hidden_BTD)
        return nothing if self.num_outputs is None else (nothing, *[None] * (self.num_outputs - 1))


def count_params(module: nn.Module) -> int:
    """How many numbers a module's parameters hold; those that are tied count once."""
    return sum(parameter.numel() for parameter in module.parameters())


class Anatomy:
    """The parts of one model that scoring works on. Holds no copy of any weight."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.config: Any = text_config(model)
        self.num_layers = int(self.config.num_hidden_layers)
        self.owner, self.attribute = find_layers(model)
        self.returns_tuple = False
        self._calls: dict[tuple[int, ...], list[LayerCall]] = {}

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's list of layers as it stands now."""
        found = getattr(self.owner, self.attribute)
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def gone_layers(self) -> tuple[int, ...]:
        """Layers in whose place the model has a gap: none, but where a recovered model was grafted in."""
        return tuple(index for index, layer in enumerate(self.layers) if isinstance(layer, Gap))

    @property
    def device(self) -> torch.device:
        """Where the model's parameters lie."""
        return next(self.model.parameters()).device

    def layer_kind(self, layer: int) -> str:
        """Name what decides a layer's latency: class, attention kind and parameter shapes."""
        module = self.layers[layer]
        types = getattr(self.config, "layer_types", None)
        kind = types[layer] if types else type(module).__name__
        return f"{kind}/{count_params(module)}"

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kinds of layers that there are, each once, in the order in which they come."""
        return tuple(dict.fromkeys(self.layer_kind(layer) for layer in range(self.num_layers)))

    @torch.no_grad()
    def trace(self, tokens_BT: Tensor) -> list[Tensor]:
        """Return the hidden states before each layer and after the last: L + 1 tensors (B, T, D).

        Runs the model's own forward once; what every layer was called with is remembered for this shape.
        """
        states: list[Tensor] = []
        calls: list[LayerCall] = []

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden_name = None if args else "hidden_states"
            states.append((args[0] if args else kwargs["hidden_states"]).detach())
            rest = {name: value for name, value in kwargs.items() if name != hidden_name}
            calls.append(LayerCall(args=args[1:], kwargs=rest, hidden_name=hidden_name))

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self.returns_tuple = isinstance(output, tuple)
            states.append(written_by(output).detach())

        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                handle = layer.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
            stack.callback(self.layers[-1].register_forward_hook(after).remove)
            one_head = (
                {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
            )
            self.model(input_ids=tokens_BT, use_cache=False, **one_head)  # the states are what is wanted
        if len(states) != len(self.layers) + 1:
            raise ModelError(
                f"{type(self.model).__name__}: its {len(self.layers)} layers were called {len(states) - 1} times in one "
                "forward pass, and Seed only removes layers that are called once each. Choose another model."
            )
        self._calls[tuple(tokens_BT.shape)] = calls
        return states

    @torch.no_grad()
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Return the hidden states before the first layer (B, T, D), running no layer once the shape is known."""
        if tuple(tokens_BT.shape) not in self._calls:
            return self.trace(tokens_BT)[0]

        def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        return self._run_until(self.layers[0].register_forward_pre_hook(leave, with_kwargs=True), tokens_BT)

    def run_layers(self, tokens_BT: Tensor) -> Tensor:
        """Return the states after the last layer (B, T, D), with gradients where they are on; the head is not run."""

        def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self.returns_tuple = isinstance(output, tuple)
            raise _Reached(written_by(output))

        return self._run_until(self.layers[-1].register_forward_hook(leave), tokens_BT)

    def _run_until(self, handle: RemovableHandle, tokens_BT: Tensor) -> Tensor:
        # Caught inside the model's own forward: hooks around it, such as those of sharded weights, then see it end.
        forward = self.model.forward

        def leave_early(*args: Any, **kwargs: Any) -> Tensor:
            try:
                forward(*args, **kwargs)
            except _Reached as reached:
                return reached.hidden_BTD
            raise AssertionError("the hook always leaves")

        self.model.forward = leave_early
        try:
            hidden_BTD: Tensor = self.model(input_ids=tokens_BT, use_cache=False)
            return hidden_BTD
        finally:
            del self.model.forward
            handle.remove()

    @contextlib.contextmanager
    def record_states(self, is_wanted: bool = True) -> Iterator[list[Tensor]]:
        """Yield a list that every layer's output (B, T, D) is added to while the block runs, gradients and all."""
        outputs: list[Tensor] = []

        def record(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            outputs.append(written_by(output))

        handles = [layer.register_forward_hook(record) for layer in self.layers] if is_wanted else []
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def recompute_layers(self, is_wanted: bool = True) -> Iterator[None]:
        """Let layers that run in the block keep their inputs only, and run again on the way back (arXiv 1604.06174)."""
        layers = list(self.layers) if is_wanted else []
        for layer in layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward

    def run_layer(self, layer: int, hidden_BTD: Tensor) -> Tensor:
        """Run one layer, at its original index, on states of a shape that was traced before."""
        shape = (hidden_BTD.shape[0], hidden_BTD.shape[1])
        call = self._calls[shape][layer]
        if call.hidden_name is None:
            output = self.layers[layer](hidden_BTD, *call.args, **call.kwargs)
        else:
            output = self.layers[layer](*call.args, **{call.hidden_name: hidden_BTD}, **call.kwargs)
        return written_by(output)

    def compute_logits(self, hidden_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
        """Turn states after the last layer into logits (B, T, V): final norm, head, scales and caps of the family."""
        original = self.layers
        replay = Gap(returns_tuple=self.returns_tuple, like=original[-1], states=hidden_BTD)
        setattr(self.owner, self.attribute, nn.ModuleList([replay]))
        try:
            logits: Tensor = self.model(input_ids=tokens_BT, use_cache=False).logits
            return logits
        finally:
            setattr(self.owner, self.attribute, original)

    def find_output_projection(self, layer: int) -> OutputProjection | None:
        """Return what writes into the residual stream last in a layer, or None where that is not known."""
        return find_output_projection(self.layers[layer], width=int(self.config.hidden_size))

    def spell(self, candidate: Candidate) -> Candidate:
        """The candidate in this anatomy's own layers."""
        return candidate

    # ---- attention and MLP

    def find_part(self, layer: int, kind: str) -> str | None:
        """The name of a layer's attention or MLP among its children; None: it has none that is known."""
        names = ATTENTION_NAMES if kind == "attn" else MLP_NAMES
        return next((name for name, _ in self.layers[layer].named_children() if name in names), None)

    def get_part(self, layer: int, kind: str) -> nn.Module:
        """A layer's attention or MLP, which it has."""
        name = self.find_part(layer, kind)
        assert name is not None, "prove_sublayers proved that there is one"
        return self.layers[layer].get_submodule(name)

    @contextlib.contextmanager
    def without(self, lacking: Mapping[int, str]) -> Iterator[None]:
        """Let layers lack their attention or their MLP while the block runs."""
        parts = {place: self.get_part(*place) for place in lacking.items()}
        for place in parts:
            self.put_part(*place, self.make_absent(*place))
        try:
            yield
        finally:
            for place, part in parts.items():
                self.put_part(*place, part)

    def put_part(self, layer: int, kind: str, part: nn.Module) -> None:
        """Let another module stand in the place of a layer's attention or MLP, be it there or absent."""
        setattr(self.layers[layer], str(self.find_part(layer, kind)), part)

    def make_absent(self, layer: int, kind: str) -> Absent:
        """What stands where a layer's attention or MLP was."""
        return Absent(kind, num_outputs=self.num_outputs[layer, kind], like=self.get_part(layer, kind))

    @functools.cached_property
    @torch.no_grad()
    def num_outputs(self) -> dict[tuple[int, str], int | None]:
        """How many things attention and MLP of each layer return, seen in a pass over two tokens; None: a tensor, in no tuple."""
        found: dict[tuple[int, str], int | None] = {}

        def note(place: tuple[int, str], _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            found[place] = len(output) if isinstance(output, tuple) else None

        with contextlib.ExitStack() as stack:
            for place in itertools.product(range(len(self.layers)), KINDS):
                if self.find_part(*place) is not None:
                    handle = self.get_part(*place).register_forward_hook(functools.partial(note, place))
                    stack.callback(handle.remove)
            self.run_layers(torch.zeros(1, 2, dtype=torch.long, device=self.device))
        return found


class SublayerAnatomy(Anatomy):
    """A model walked by attention and MLP in turn, as if each were a layer: 8 and 9 are those of layer 4.

    It takes a family in which the MLP reads what attention has written; ``prove_sublayers`` says whether this one is such.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.num_layers *= 2

    @torch.no_grad()
    def trace(self, tokens_BT: Tensor) -> list[Tensor]:
        """Return the hidden states before each attention and MLP and after the last: 2 L + 1 tensors (B, T, D)."""
        whole = super().trace(tokens_BT)
        states = whole[:1]
        for layer, (before, after) in enumerate(itertools.pairwise(whole)):
            states += [self.run_layer(2 * layer, before), after]
        return states

    def run_layer(self, layer: int, hidden_BTD: Tensor) -> Tensor:
        """Run one attention or one MLP, at its original index, on states of a shape that was traced before."""
        with self.without({layer // 2: KINDS[1 - layer % 2]}):
            return super().run_layer(layer // 2, hidden_BTD)

    def find_output_projection(self, layer: int) -> OutputProjection | None:
        """Return what writes into the residual stream last in an attention or MLP, or None where that is not known."""
        if layer % 2:
            return super().find_output_projection(layer // 2)
        name, owner = self.find_part(layer // 2, "attn"), self.layers[layer // 2]
        return None if name is None else find_attention_projection(owner, name, width=int(self.config.hidden_size))

    def spell(self, candidate: Candidate) -> Candidate:
        """The candidate in attentions and MLPs."""
        return candidate.sublayers


@torch.no_grad()
def prove_sublayers(anatomy: Anatomy, tokens_BT: Tensor) -> str | None:
    """Say why attention and MLP of a model's layers cannot go alone; None: they can."""
    for layer, kind in itertools.product(range(len(anatomy.layers)), KINDS):
        if anatomy.find_part(layer, kind) is None:
            return f"layer {layer} has no {KIND_WORDS[kind]} that Seed knows"
    walked = SublayerAnatomy(anatomy.model)
    states = walked.trace(tokens_BT)
    for layer, at in itertools.product(range(len(anatomy.layers)), range(len(KINDS))):
        outlet = walked.find_output_projection(2 * layer + at)
        if outlet is None:
            return f"{KIND_WORDS[KINDS[at]]} of layer {layer} does not end in a projection that Seed knows"
        other = walked.run_layer(2 * layer + 1 - at, states[2 * layer])
        if not at and not agree(walked.run_layer(2 * layer + 1, states[2 * layer + 1]), states[2 * layer + 2]):
            return f"attention and MLP of layer {layer}, one after the other, do not give what the layer gives"
        if not agree(_run_silenced(walked, layer, at, states[2 * layer]), other):
            return f"{KIND_WORDS[KINDS[at]]} of layer {layer} writes more than its last projection does"
    return None


def _run_silenced(walked: SublayerAnatomy, layer: int, at: int, hidden_BTD: Tensor) -> Tensor:
    """Run a copy of a whole layer whose attention (0) or MLP (1) writes zeros."""
    original = walked.layers[layer]
    walked.layers[layer] = copy.deepcopy(original)
    try:
        outlet = walked.find_output_projection(2 * layer + at)
        assert outlet is not None, "the original has one"
        outlet.silence()
        return Anatomy.run_layer(walked, layer, hidden_BTD)
    finally:
        walked.layers[layer] = original


def agree(found: Tensor, expected: Tensor) -> bool:
    """Equal to the bit on the CPU; on an accelerator, equal but for the rounding of another kernel."""
    if found.device.type == "cpu":
        return torch.equal(found, expected)
    tolerance = 1e-4 if found.dtype == torch.float32 else 3e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def text_config(model: nn.Module) -> Any:
    """The config of a model's language part."""
    config: Any = model.config
    return config.get_text_config()


def cache_of(output: Any) -> dict[str, Any]:
    """The cache that a forward pass left, by the name that the next one takes it under: recurrent families have one of their own."""
    for name in ("cache_params", "past_key_values"):
        if name in output:
            return {name: output[name]}
    raise ModelError(
        f"{type(output).__name__}: this family hands on no cache, so that its decoding can be neither proven nor timed. Choose another "
        "model."
    )


def find_layers(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that owns the decoder's layers, and the attribute that holds them.

    Raises:
        ModelError: there is not exactly one list of ``num_hidden_layers`` layers.
    """
    num_layers = text_config(model).num_hidden_layers
    whole: Any = model
    decoder: nn.Module = whole.get_decoder() if hasattr(model, "get_decoder") else model
    if isinstance(decoder, nn.Linear):  # modernbert-decoder calls its head so
        decoder = whole.base_model
    found = [
        (owner, name)
        for owner in decoder.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers and any(True for _ in child.parameters())
    ]
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__name__}: found {len(found)} lists of {num_layers} layers where Seed expects exactly one, "
            "so it cannot tell which layers to remove. Choose a decoder-only model of a common family."
        )
    return found[0]
