"""What every door asks of a model: of its tensors as they lie in files, and of what transformers made of them."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from seed.errors import CorpusError, ModelError
from seed.models.stored import StoredTensor
from seed.reporting.wording import count_things

# Types that weights are computed from; others are integers, or belong to quantized weights.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# How peft calls what it puts beside a model's own weights.
ADAPTER = re.compile(r"(^|\.)(lora_|ia3_l|hada_w|lokr_w|oft_|boft_|vera_|base_layer\.)")
# Constants that older checkpoints hold, and transformers makes anew.
PASSED_OVER = (re.compile(r"rotary_emb\.inv_freq"), re.compile(r"(^|\.)position_ids$"))
NUM_NAMED = 3
SAMPLE = """The QUICK brown fox can't jump over 13 lazy dogs, at 1,234.50 € each -- or could it?
\tfor i in range(2048):  x[i] += 3e-7   # "why", she'd ask

Ærøskøbing, Übergröße, naïve cafés, ПРИВЕТ мир, Ελληνικά; 深度学习模型，東京タワー、한국어. ½ ﬁn Ａ 🙂👩‍💻\r\n  End."""


def find_stored_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype:
    """The type that most bytes of a checkpoint's floating-point tensors are stored in, whatever its config says."""
    num_bytes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in FLOATS:
            num_bytes[tensor.dtype] += tensor.num_bytes
    return FLOATS[num_bytes.most_common(1)[0][0]] if num_bytes else torch.float32


def list_unread(tensors: Iterable[StoredTensor], model: Any, unexpected: Collection[str]) -> list[str]:
    """Names of the tensors that transformers did not read: those it calls unexpected, and those that it passes over."""
    passed_over = [*PASSED_OVER, *map(re.compile, getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    own = set(model.state_dict())
    return [
        tensor.name
        for tensor in tensors
        if any(name in unexpected for name in spell_names(tensor.name, model))
        or (
            any(pattern.search(tensor.name) for pattern in passed_over)
            and not any(name in own for name in spell_names(tensor.name, model))
        )
    ]


def refuse_tensors(tensors: Sequence[StoredTensor], model: Any, unread: Collection[str], *, place: str) -> None:
    """Raise where tensors are not what their model takes them for: adapters beside it, or quantized weights.

    Args:
        tensors: of its files.
        model: that transformers made of them, or would: shapes are enough.
        unread: names of tensors that transformers does not read.
        place: of the model, as the user named it.

    Raises:
        ModelError: with the cure.
    """
    adapters = [name for name in unread if ADAPTER.search(name)]
    if adapters:
        raise ModelError(
            f"{place}: {count_things(len(adapters), 'tensor')} of an adapter lie beside its weights ({_name_some(adapters)}), which "
            "transformers would leave out without a word. Merge the adapter into the model first (peft: merge_and_unload), and save that."
        )
    # by their last names: those before may be spelled otherwise in files than in the model
    integers = {
        name.rpartition(".")[2]
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if not tensor.is_floating_point()
    }
    odd = [
        tensor
        for tensor in tensors
        if tensor.dtype not in FLOATS and tensor.name not in unread and tensor.name.rpartition(".")[2] not in integers
    ]
    if odd:
        raise ModelError(
            f"{place}: {count_things(len(odd), 'tensor')} of its weights are stored as {', '.join(sorted({one.dtype for one in odd}))} "
            f"({_name_some([one.name for one in odd])}), where this model wants floating-point numbers of 16 bits or more: they are "
            "quantized. Dequantize them first, or give the model that it was made from."
        )


@torch.no_grad()
def refuse_not_finite(model: nn.Module, *, place: str, stored: torch.dtype) -> None:
    """Raise when a weight holds NaN or infinity; one pass over each tensor, as fast as memory is.

    Raises:
        ModelError: names the tensor.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0 or torch.stack(parameter.aminmax()).isfinite().all():
            continue
        wrong = (~parameter.isfinite()).nonzero()
        cure = "Save or download the checkpoint again, or choose another model."
        if parameter.dtype != stored:
            cure = f"It is stored in {spell_dtype(stored)}: choose another --dtype, or save the checkpoint again."
        raise ModelError(
            f"{place}: {name} holds {len(wrong):,} of {parameter.numel():,} numbers that are NaN or infinite "
            f"(the first at {wrong[0].tolist()}), as {spell_dtype(parameter.dtype)}. {cure}"
        )


def settle_ties(model: Any) -> str | None:
    """Let a model's config say whether its head is tied as it was opened; return what is to be told of it, if anything.

    transformers leaves a head alone that is stored beside the embedding and differs from it, whatever the config says.
    """
    apart = sorted(set(model.get_expanded_tied_weights_keys(all_submodels=True)) - set(model.all_tied_weights_keys))
    if not apart:
        return None
    untie(model.config)
    return (
        f"its config says that head and embedding are one (tie_word_embeddings), and its files hold {', '.join(apart)} with "
        "other numbers: the model is measured and exported with both, as transformers opens it"
    )


def untie(config: Any) -> None:
    """Let a config say that head and embedding are two."""
    for one in (config, config.get_text_config()):
        if getattr(one, "tie_word_embeddings", False):
            one.tie_word_embeddings = False


def tell_of(tensors: Sequence[StoredTensor], unread: Sequence[str], stored: torch.dtype) -> list[str]:
    """What a user should know of a checkpoint's tensors before its numbers are believed."""
    told = []
    if unread:
        told.append(
            f"{len(unread):,} of {len(tensors):,} tensors in its files are not read by transformers, and are neither measured "
            f"nor exported by distillation: {_name_some(unread)}"
        )
    others = [one for one in tensors if one.dtype in FLOATS and FLOATS[one.dtype] != stored and one.name not in unread]
    if others:
        types = ", ".join(sorted(spell_dtype(FLOATS[dtype]) for dtype in {one.dtype for one in others}))
        told.append(
            f"{count_things(len(others), 'tensor')} of {sum(one.numel for one in others):,} numbers are stored in {types}, the others in "
            f"{spell_dtype(stored)}: a distilled model has all of them in {spell_dtype(stored)} ({_name_some([one.name for one in others])})"
        )
    return told


def open_tokenizer(directory: Path, *, place: str, trust_remote_code: bool = False) -> tuple[Any, str | None]:
    """Open a tokenizer that gives the tokens that its tokenizer.json gives; return what is to be told of it, too.

    transformers rebuilds the tokenizers of some families by rules of its own, whatever lies in the file that other
    programs read.

    Args:
        directory: where its files lie.
        place: of the model, as the user named it.
        trust_remote_code: the model's own code may run.

    Raises:
        ModelError: transformers makes other tokens of a text than the file does, in every way it has.
    """
    options = allow_code(trust_remote_code)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **options)
    path = directory / "tokenizer.json"
    is_own = not type(tokenizer).__module__.startswith("transformers.")  # a model's own code knows best
    if is_own or not path.is_file():
        return tokenizer, None
    written = Tokenizer.from_file(str(path))
    written.no_truncation()
    written.no_padding()
    wanted = written.encode(SAMPLE, add_special_tokens=False).ids
    found = tokenizer.encode(SAMPLE, add_special_tokens=False)
    if found == wanted or (
        _sets_first_space(directory)  # and a text that begins with one gets none
        and tokenizer.encode(f" {SAMPLE}", add_special_tokens=False)
        == written.encode(f" {SAMPLE}", add_special_tokens=False).ids
    ):
        return tokenizer, None
    told = (
        f"transformers {transformers.__version__} makes {len(found)} tokens of a text of which its tokenizer.json makes {len(wanted)}"
        if len(found) != len(wanted)
        else f"transformers {transformers.__version__} makes other tokens of a text than its tokenizer.json does"
    )
    plain = transformers.PreTrainedTokenizerFast.from_pretrained(directory, **options)
    if plain.encode(SAMPLE, add_special_tokens=False) != wanted:
        raise ModelError(
            f"{place}: {told} (as {type(tokenizer).__name__}), so numbers would not be those of other programs. Save the tokenizer "
            "again with the transformers that is installed here, and check that it still fits the model."
        )
    return plain, f"{told}, as {type(tokenizer).__name__}: it is read as the file says"


def allow_code(trust_remote_code: bool) -> dict[str, bool]:
    """Options of ``from_pretrained`` for a directory: from the network comes at most code that is trusted, and nothing is asked."""
    return {"trust_remote_code": trust_remote_code, "local_files_only": not trust_remote_code}


def refuse_words(tokenizer: Any, model: Any, *, place: str) -> None:
    """Raise when a tokenizer gives tokens that the embedding has no row for.

    Added tokens may lie beyond it, such as Gemma 3's for images: no text holds them unless it spells them out, which
    ``refuse_ids`` sees.

    Raises:
        ModelError: with both numbers.
    """
    num_rows = model.get_input_embeddings().weight.shape[0]
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}  # that texts begin and end with
    added = set(getattr(tokenizer, "added_tokens_decoder", {})) - ends
    words = sorted(
        (index, token) for token, index in tokenizer.get_vocab().items() if index >= num_rows and index not in added
    )
    if words:
        raise ModelError(
            f"{place}: its tokenizer gives ids up to {words[-1][0]:,} ({words[-1][1]!r}), and its embedding has {num_rows:,} rows, for ids "
            f"below that. Give the tokenizer that the model was trained with, or resize the embedding "
            "(resize_token_embeddings) and train it."
        )


def refuse_ids(tokens_NT: torch.Tensor, model: Any, *, source: str) -> None:
    """Raise when a text holds a token that the embedding has no row for, such as one for images.

    Raises:
        CorpusError: with both numbers.
    """
    num_rows, largest = model.get_input_embeddings().weight.shape[0], int(tokens_NT.max())
    if largest >= num_rows:
        raise CorpusError(
            f"{source}: holds the token {largest:,}, and the model's embedding has {num_rows:,} rows, for ids below that. Take that "
            "token's text out, or give the tokenizer that the model was trained with."
        )


def spell_names(name: str, model: Any) -> tuple[str, ...]:
    """The names that a tensor may have in a model: with and without that of the part which holds the layers."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return (name, name.removeprefix(prefix), prefix + name)


def _sets_first_space(directory: Path) -> bool:
    """Does a tokenizer's config say whether a text is to begin with a space? transformers heeds it, over tokenizer.json."""
    path = directory / "tokenizer_config.json"
    return path.is_file() and json.loads(path.read_bytes()).get("add_prefix_space") is not None


def spell_dtype(dtype: torch.dtype) -> str:
    """A type by its name in transformers: ``float32``."""
    return str(dtype).removeprefix("torch.")


def _name_some(names: Sequence[str]) -> str:
    rest = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")
