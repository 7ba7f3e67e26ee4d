"""What leaves the house: an ordinary Hugging Face checkpoint, written aside and renamed, and proven."""

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seed import study_dir
from seed.errors import ModelError, SeedError, first_line
from seed.models import checks
from seed.models.anatomy import Absent, Anatomy, agree, cache_of, count_params
from seed.models.files import check_files, has_tokenizer, read_companions
from seed.models.loader import load_model, open_config
from seed.models.provenance import read_export
from seed.models.spelling import spell_config
from seed.models.stored import read_tensors
from seed.models.surgery import cast_weights, list_needed, make_student, remove_parts, restore_parts
from seed.records import Candidate, Size

ALIGNED_BYTES = 64  # where torch puts what it allocates


def measure_size(model: nn.Module, *, dtype: torch.dtype) -> Size:
    """Count parameters once where they are tied; weight bytes and KV-cache bytes a token in ``dtype``."""
    num_params = count_params(model)
    width = torch.finfo(dtype).bits // 8
    return Size(
        num_params=num_params,
        weight_bytes=num_params * width,
        kv_bytes_per_token=_count_cache(model) * width,
    )


@torch.no_grad()
def _count_cache(model: nn.Module) -> int:
    """Numbers that the KV cache holds for a token, counted in a real cache: families differ too much to compute it."""
    # few tokens: short sliding windows would hold fewer than were read
    tokens = torch.zeros(1, 4, dtype=torch.long, device=next(model.parameters()).device)
    [cache] = cache_of(
        model(input_ids=tokens, use_cache=True)
    ).values()  # its own, since some families need one of theirs
    layers = [layer for layer in getattr(cache, "layers", []) if isinstance(getattr(layer, "keys", None), torch.Tensor)]
    numbers: int = sum(layer.keys.numel() + layer.values.numel() for layer in layers)
    absent = sum(isinstance(module, Absent) and module.kind == "attn" for module in model.modules())
    return numbers // tokens.shape[1] - 2 * absent


def write_checkpoint(
    model: nn.Module, target: Path, *, tokenizer: Any, dtype: torch.dtype, original: Path | None = None
) -> None:
    """Write weights, config and tokenizer as whatever reads the original reads them.

    Args:
        model: converted in place.
        target: the directory; what was there is replaced.
        tokenizer: of the original, written where it has no files of its own.
        dtype: of the weights.
        original: its directory, whose tokenizer, licence and the like go along as they are; None: it lies in none.

    Raises:
        ResourceError: the disk does not take it.
    """
    with study_dir.replace_directory(target) as aside:
        exported: Any = cast_weights(model, dtype)
        exported.save_pretrained(aside)
        if original is not None:
            (aside / "generation_config.json").unlink(missing_ok=True)  # the original's is copied, if it has one
        if original is None or not has_tokenizer(original):  # transformers would write it anew, and otherwise
            tokenizer.save_pretrained(aside)
        finish_export(aside, original=original)


def finish_export(directory: Path, *, original: Path | None) -> None:
    """Give an export the original's words for the config, what stood beside it, and no code.

    Args:
        directory: that is exported.
        original: where the original lies; None: in no directory.
    """
    spell_config(directory, original=original)
    copy_companions(directory, original=original)


def copy_companions(directory: Path, *, original: Path | None) -> None:
    """Put to weights and config of an export what stood beside the original, and no code; who may read the config may read all.

    Args:
        directory: that is exported.
        original: where the original lies; None: in no directory.
    """
    beside = {} if original is None else read_companions(original)
    for name in beside.keys() - {"config.json"}:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(beside[name])
    strip_code(directory)
    readable = (directory / "config.json").stat().st_mode
    for path in directory.glob("*.safetensors"):  # safetensors writes them for their owner alone
        path.chmod(readable)


def strip_code(directory: Path) -> None:
    """Take out of an exported directory what would run code of its own: the files, and whatever points to some.

    A model that was opened with its own code brings both along when it is saved.
    """
    for file in directory.rglob("*.py"):
        file.unlink()
    for file in directory.glob("*config.json"):
        try:
            text = file.read_text(encoding="utf-8")
            content = json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k != "auto_map"})
        except ValueError:  # what is no JSON points nowhere
            continue
        if content != json.loads(text):
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_checkpoint(path: Path, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Load an exported directory without its code; every key and every weight must be found and used.

    Raises:
        ModelError: keys are missing, left over or of another shape; or there is code or an adapter, which are not loaded.
    """
    check_files(path)
    with explain_failure(path):
        tensors = read_tensors(path)
        model, _ = load_model(path, tensors, config=open_config(path), dtype=dtype, device=device, place=str(path))
    for parameter in model.parameters():
        # mapped from the file, weights lie where its header ends, and kernels of the CPU round by where they lie
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNED_BYTES:
            parameter.data = parameter.data.clone()
    return model


def load_export(path: Path, *, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a model that Seed exported, without the attentions and MLPs that its seed.json says are gone.

    Args:
        path: its directory.
        device: where it is put.
        dtype: None: as it is stored.

    Raises:
        ModelError: it is none, or damaged.
    """
    said = read_export(path, place=str(path))
    model = load_checkpoint(path, device=device, dtype=dtype or checks.find_stored_dtype(read_tensors(path)))
    remove_parts(model, said.candidate)
    return model


def load_tokenizer(path: Path) -> Any:
    """Load the tokenizer of an exported directory.

    Raises:
        ModelError: it is missing or damaged.
    """
    with explain_failure(path):
        return checks.open_tokenizer(path, place=str(path))[0]


@contextlib.contextmanager
def explain_failure(path: Path) -> Iterator[None]:
    """Configs, tokenizers and files of anyone fail in ways of their own."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if study_dir.is_out_of_memory(error):
            raise
        raise ModelError(
            f"{path}: cannot be loaded ({type(error).__name__}: {first_line(error)}). If Seed wrote it, remove the directory "
            "and run the same command again; it will be written anew."
        ) from error


def prove_round_trip(
    anatomy: Anatomy, tokens_BT: torch.Tensor, *, scratch: Path, dtype: torch.dtype, by_sublayers: bool = False
) -> None:
    """Cut, save, reload and compare on a few layers, so that a family Seed gets wrong is refused at once.

    ``by_sublayers``: attention and MLP go alone, too.

    Raises:
        ModelError: cutting, saving or reloading fails, the reloaded student's logits differ from the ones
            before, or cached decoding differs from uncached.
    """
    name = type(anatomy.model).__name__
    try:
        with study_dir.explain_resource_errors(scratch):
            wrong = _try_round_trip(anatomy, tokens_BT, scratch=scratch, dtype=dtype, by_sublayers=by_sublayers)
    except SeedError:
        raise
    except Exception as error:  # an unknown family fails in ways of its own
        wrong = f"{type(error).__name__}: {first_line(error)}"
    if wrong:
        raise ModelError(
            f"{name}: {wrong}. Seed does not know this family well enough to hand back a correct checkpoint, and stops "
            "here. Choose another model."
        )


@torch.no_grad()
def _try_round_trip(
    anatomy: Anatomy, tokens_BT: torch.Tensor, *, scratch: Path, dtype: torch.dtype, by_sublayers: bool
) -> str | None:
    """Say what is wrong with students of a few layers, or nothing."""
    num_tried = 0
    for candidate in _list_tried(anatomy, by_sublayers=by_sublayers):
        student: Any = make_student(anatomy, candidate)
        cut = f"without {', '.join(candidate.parts)}"
        expected = student(input_ids=tokens_BT, use_cache=False).logits
        if not expected.isfinite().all():
            continue  # it is no good without these layers, which says nothing of how it was cut
        num_tried += 1
        # the student itself, not the reloaded one: loading numbers layers anew and would hide a wrong index
        if fault := _compare_cached(student, tokens_BT, dtype=dtype):
            return f"{'as it came' if _compare_cached(anatomy.model, tokens_BT, dtype=dtype) else cut}, {fault}"
        with study_dir.make_scratch(scratch / "round-trip") as directory:
            restore_parts(student, anatomy, candidate)
            student.save_pretrained(directory)
            finish_export(directory, original=None)
            reloaded: Any = load_checkpoint(directory, device=anatomy.device, dtype=dtype)
            found = reloaded(input_ids=tokens_BT, use_cache=False).logits
        if not agree(found, expected):
            return f"{cut}, saved and reloaded, logits differ by up to {(found - expected).abs().max().item():.2g}"
    return None if num_tried else "with a few layers alone, logits are no numbers"


def _list_tried(anatomy: Anatomy, *, by_sublayers: bool) -> list[Candidate]:
    """Two sets of a few layers: one without the first of those that may go, one without the last.

    ``by_sublayers``: the first layer that is left lacks its attention, too, and the last one its MLP.
    """
    needed = list_needed(anatomy.model.config)
    free = [layer for layer in range(anatomy.num_layers) if layer not in needed]
    few = [
        {rest[0], rest[len(rest) // 2], rest[-1]} if len(rest) > 3 else {rest[0], rest[-1]}
        for rest in (free[:-1], free[1:])
        if rest
    ]
    tried = [Candidate.keep(num_layers=anatomy.num_layers, kept_layers=sorted({*some, *needed})) for some in few]
    return [lack_ends(candidate) for candidate in tried] if by_sublayers else tried


def lack_ends(candidate: Candidate) -> Candidate:
    """The same, where the first layer that is left lacks its attention, and the last one its MLP."""
    first, last = candidate.kept_layers[0], candidate.kept_layers[-1]
    ends = [f"{first}.attn"] + [f"{last}.mlp"] * (last != first)
    return Candidate.drop(candidate.num_layers, [*candidate.parts, *ends])


def _compare_cached(model: nn.Module, tokens_BT: torch.Tensor, *, dtype: torch.dtype) -> str | None:
    """Say by how much cached decoding differs from uncached, where it is more than rounding."""
    plain = model(input_ids=tokens_BT, use_cache=False).logits
    gap = (_decode_cached(model, tokens_BT) - plain).abs().max().item()
    if gap <= (1e-3 if dtype == torch.float32 else 0.25) * max(1.0, plain.abs().max().item()):
        return None
    return f"cached decoding differs from uncached by {gap:.2g}"


def _decode_cached(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Logits of all positions, the second half one token at a time through the cache."""
    half = tokens_BT.shape[1] // 2
    output = model(input_ids=tokens_BT[:, :half], use_cache=True)
    pieces = [output.logits]
    # bamba and minimax do not count what the cache holds; bloom and others take no positions
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    for position in range(half, tokens_BT.shape[1]):
        where = {"position_ids": torch.tensor([[position]], device=tokens_BT.device)} if takes_positions else {}
        output = model(input_ids=tokens_BT[:, position : position + 1], use_cache=True, **where, **cache_of(output))
        pieces.append(output.logits)
    return torch.cat(pieces, dim=1)
