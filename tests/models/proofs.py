"""What must hold for a family before Seed removes layers from it, proven on one tiny random checkpoint."""

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from torch import nn

from seed.errors import ModelError
from seed.evaluation.latency import Decoder
from seed.evaluation.perplexity import logits_of, measure_losses
from seed.models.anatomy import Anatomy, SublayerAnatomy, prove_sublayers
from seed.models.checkpoint import load_checkpoint, measure_size, prove_round_trip
from seed.models.copying import plan_cut, write_cut
from seed.models.loader import find_class
from seed.models.output_projection import NormedProjection
from seed.models.surgery import list_needed, make_student, refuse_unfit, view_layers
from seed.proxy.closed_form import fold_refit, measure_gains
from seed.proxy.subset_walker import SubsetWalker, measure_unrecovered
from seed.records import Candidate
from tests.models.families import compute_logits, keep, make_config, make_model, make_tokens
from tests.proxy.streams import draw_stream

CPU = torch.device("cpu")
SUBSETS = ((0, 3), (1, 2, 3))


class Proof(Struct, frozen=True, kw_only=True):
    """What was proven of a family, in words; a row of docs/FAMILIES.md."""

    architecture: str
    model_type: str
    proven: str
    trimmed: str
    closed_form: str
    tied: str
    needed: str
    alone: str


def list_subsets(anatomy: Anatomy) -> list[tuple[int, ...]]:
    """Some sets of layers; those that the family cannot do without are in all of them."""
    needed = list_needed(anatomy.model.config)
    subsets = {tuple(sorted({*kept, *needed})): None for kept in SUBSETS}
    return [kept for kept in subsets if len(kept) < 4]


def prove_family(family: str, scratch: Path) -> Proof:
    """Assert all of it, or that the family is refused; return what to say of it."""
    config = make_config(family)
    try:
        refuse_unfit(config, place="there")
    except ModelError as error:
        reason = str(error).partition("since ")[2].removesuffix(". Choose another model.")
        kind = find_class(config)
        name = kind.__name__ if kind else type(config).__name__.removesuffix("Config")
        return refuse(name, config.model_type, reason)
    model = make_model(family)
    anatomy = Anatomy(model)
    try:
        prove_surgery(anatomy, scratch)
    except ModelError as error:  # a study would say so when it starts
        return refuse(type(model).__name__, config.model_type, describe_fault(error))
    closed_form = prove_scores(anatomy)
    return Proof(
        architecture=type(model).__name__,
        model_type=config.model_type,
        proven="yes",
        trimmed=", ".join(f"`{name}`" for name in list_trimmed(anatomy)) or "-",
        closed_form=closed_form,
        tied="yes" if are_tied(model) else "no",
        needed=name_needed(config),
        alone=prove_parts(anatomy, scratch),
    )


def describe_fault(error: ModelError) -> str:
    """What of a family is not as it should be, without numbers that differ from run to run."""
    return re.sub(r" by \d[\d.e+-]*\d", "", str(error)).partition(": ")[2].partition(". Seed does not")[0].strip()


def refuse(architecture: str, model_type: str, reason: str) -> Proof:
    nothing = dict.fromkeys(("trimmed", "closed_form", "tied", "needed", "alone"), "-")
    return Proof(architecture=architecture, model_type=model_type, proven=f"refused: {reason}", **nothing)


def prove_surgery(anatomy: Anatomy, scratch: Path) -> None:
    """View, walk, student, reloaded student and copied files are one model to the bit, in cached generation too; no trace is left."""
    model, tokens = anatomy.model, make_tokens()
    before = compute_logits(model, tokens)
    states = anatomy.trace(tokens)
    whole = scratch / "whole"
    model.save_pretrained(whole, max_shard_size=30_000)
    prove_round_trip(anatomy, tokens, scratch=scratch, dtype=torch.float32)  # a study begins with it
    for kept in list_subsets(anatomy):
        hidden = states[0]
        with torch.no_grad():
            for layer in kept:
                hidden = anatomy.run_layer(layer, hidden)
            walked = anatomy.compute_logits(hidden, tokens)
        with view_layers(anatomy, keep(*kept)) as view:
            viewed = compute_logits(view, tokens)
        student: Any = make_student(anatomy, keep(*kept))
        saved = scratch / keep(*kept).key
        student.save_pretrained(saved)
        write_cut(plan_cut(whole, kept), scratch / "copied", shard_bytes=40_000)
        copied = load_checkpoint(scratch / "copied", device=CPU, dtype=torch.float32)
        rebuilt = load_checkpoint(saved, device=CPU, dtype=torch.float32)  # every key found and used
        assert viewed.isfinite().all(), kept
        assert torch.equal(walked, viewed), kept
        assert torch.equal(compute_logits(student, tokens), viewed), kept
        assert torch.equal(compute_logits(rebuilt, tokens), viewed), kept
        assert torch.equal(compute_logits(copied, tokens), viewed), kept
        assert not list_changed(copied.config.to_dict(), rebuilt.config.to_dict()), kept
        assert generate(student, use_cache=True) == generate(rebuilt, use_cache=False), kept
        assert Anatomy(rebuilt).num_layers == len(kept)
        assert are_tied(rebuilt) == are_tied(student) == are_tied(model)
        assert measure_size(rebuilt, dtype=torch.float32) == measure_size(student, dtype=torch.float32)
    decoder = Decoder(model, tokens)
    decoder.read_prompt()
    decoder.decode(2)
    assert torch.equal(compute_logits(model, tokens), before)


def prove_scores(anatomy: Anatomy) -> str:
    """Losses of the walk are those of the students, recovered in closed form too; say whether that is available."""
    validation = draw_stream(4, 24, rng_seed=2)
    candidates = [keep(*kept) for kept in list_subsets(anatomy)]
    raw = measure_unrecovered(anatomy, candidates, validation, micro_batch=2)
    calibration = draw_stream(4, 48, rng_seed=1)
    gains = measure_gains(anatomy, anatomy.trace(calibration.tokens_NT[:2]))
    walker = gains and SubsetWalker(anatomy, calibration=calibration, validation=validation, micro_batch=2, gains=gains)
    behind_norm = all(isinstance(anatomy.find_output_projection(layer), NormedProjection) for layer in range(4))
    changes: list[float] = []
    for candidate, losses in zip(candidates, raw, strict=True):
        student = make_student(anatomy, candidate)
        own = measure_losses(logits_of(student), validation, micro_batch=2, device=CPU)
        assert losses.sums.tolist() == own.sums.tolist(), candidate.key
        if walker:
            recovered, refit = walker.measure(candidate)
            assert refit or (walker.maps and candidate.kept_layers[0])  # maps are of layers before gaps
            fold_refit(student, candidate, refit)
            folded = measure_losses(logits_of(student), validation, micro_batch=2, device=CPU)
            assert abs(folded.loss - recovered.loss) < 1e-4, candidate.key  # what a study asks for
            if behind_norm:
                assert folded.sums.tolist() == recovered.sums.tolist(), candidate.key
            changes.append(abs(folded.loss - own.loss))
    if walker:
        assert max(changes) > 1e-3
        return "yes"
    return say_why_not(anatomy)


def prove_parts(anatomy: Anatomy, scratch: Path) -> str:
    """Where attention and MLP can go alone, all of this holds for such sets, too; say whether they can."""
    tokens, validation, calibration = make_tokens(), draw_stream(4, 24, rng_seed=2), draw_stream(4, 48, rng_seed=1)
    if reason := prove_sublayers(anatomy, tokens):
        return f"no: {reason}"
    try:
        prove_round_trip(anatomy, tokens, scratch=scratch, dtype=torch.float32, by_sublayers=True)
    except ModelError as error:
        return f"no: {describe_fault(error)}"
    walked = SublayerAnatomy(anatomy.model)
    gains = measure_gains(walked, walked.trace(calibration.tokens_NT[:2]))
    walker = gains and SubsetWalker(walked, calibration=calibration, validation=validation, micro_batch=2, gains=gains)
    free = [layer for layer in range(4) if layer not in list_needed(anatomy.model.config)]
    for parts in ([f"{free[0]}.attn"], [f"{free[0]}.mlp", f"{free[-1]}.attn"]):
        candidate = Candidate.drop(4, parts)
        spelled, student = walked.spell(candidate), make_student(anatomy, candidate)
        [losses] = measure_unrecovered(walked, [spelled], validation, micro_batch=2)
        own = measure_losses(logits_of(student), validation, micro_batch=2, device=CPU)
        assert losses.sums.tolist() == own.sums.tolist(), candidate.key
        assert generate(student, use_cache=True) == generate(student, use_cache=False), candidate.key
        if walker:
            recovered, refit = walker.measure(spelled)
            fold_refit(student, candidate, refit, by_sublayers=True)
            folded = measure_losses(logits_of(student), validation, micro_batch=2, device=CPU)
            assert abs(folded.loss - recovered.loss) < 1e-4, candidate.key
    return "yes" if walker else "yes, without closed form"


def say_why_not(anatomy: Anatomy) -> str:
    """Why a family has no closed form."""
    states = anatomy.trace(make_tokens())
    if states[0].ndim != 3:
        return "no: its layers hand on several streams of states"
    for layer in range(4):
        outlet = anatomy.find_output_projection(layer)
        if outlet is None:
            return "no: what writes a layer's output was not found"
        if not outlet.is_whole(functools.partial(anatomy.run_layer, layer, states[layer])):
            return "no: not all that writes a layer's output was found"
    return "no: what a layer writes last is not added as it is"


def list_changed(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Fields of a config that another has otherwise, parts included; it may have more, such as older words for rotary bases."""
    changed = [name for name in wanted if name in found and found[name] != wanted[name] and name != "_name_or_path"]
    if "text_config" in changed:
        return [name for name in changed if name != "text_config"] + list_changed(
            found["text_config"], wanted["text_config"]
        )
    return changed + [name for name in wanted if name not in found]


def list_trimmed(anatomy: Anatomy) -> list[str]:
    """Fields of the config that change with the layers, besides their number."""
    found: set[str] = set()
    dense = anatomy.config.to_dict()
    for kept in itertools.combinations(range(4), 2):
        with view_layers(anatomy, keep(*kept)) as view:
            cut = view.config.get_text_config().to_dict()
        found |= {name for name in dense | cut if dense.get(name) != cut.get(name)}
    counts = {"num_hidden_layers", type(anatomy.config).attribute_map.get("num_hidden_layers")}
    return sorted(found - counts)


def name_needed(config: Any) -> str:
    """Which layers always stay, in words."""
    needed = list_needed(config)
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    if not needed:
        return "-"
    if needed == [0]:
        return "the first"
    if len(needed) > 1:
        return "the last of each kind"
    return "the last with attention" if {"linear_attention", "conv", "mlp"} & set(kinds) else "the last"


def are_tied(model: Any) -> bool:
    """Is the head the embedding?"""
    head: nn.Module = model.get_output_embeddings()
    return head.weight is model.get_input_embeddings().weight


def generate(model: Any, *, use_cache: bool) -> list[int]:
    return model.generate(make_tokens(1, 10), max_new_tokens=6, do_sample=False, use_cache=use_cache)[0].tolist()
