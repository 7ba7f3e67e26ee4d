"""Tiny models and texts, made on the fly: real checkpoints of real families, small enough for a test."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from tests.finished import Finished
    from tests.hub import Hub
    from tests.postgres import PostgresServer

MakeCheckpoint = Callable[..., Path]
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # tests run beside one another
# files that take long, the longest first; begun first, so that both workers end together
LONG = (
    "test_ray",
    "test_commands",
    "test_fsdp",
    "test_readme",
    "test_faults",
    "test_pipeline",
    "test_page_in_browser",
    "test_distill_together",
    "test_claims_study",
    "test_fidelity",
    "test_recoveries",
    "test_compare",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests by how long their files take."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte tokens: 256 of them, and one that ends a text."""
    vocabulary = {token: index for index, token in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")


def make_config(family: str, *, num_layers: int = 4) -> transformers.PretrainedConfig:
    """A 32-wide config of a family: llama, gpt2, qwen2, gemma2, or opt_post_norm, which has no closed form."""
    common = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if family == "llama":
        return transformers.LlamaConfig(**common, tie_word_embeddings=True)
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=257, n_embd=32, n_layer=num_layers, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
        )
    if family == "qwen2":  # per-layer attention kinds: full, then sliding windows
        return transformers.Qwen2Config(
            **common, use_sliding_window=True, sliding_window=8, max_window_layers=num_layers // 2
        )
    if family == "opt_post_norm":
        parts = {"ffn_dim": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": False, "dropout": 0.0}
        return transformers.OPTConfig(**common | parts)
    assert family == "gemma2"
    return transformers.Gemma2Config(**common, head_dim=8, sliding_window=8)


def make_model(family: str, *, num_layers: int = 4, rng_seed: int = 0) -> torch.nn.Module:
    """A random model whose layers matter: weights larger than an initialisation's."""
    torch.manual_seed(rng_seed)
    model = transformers.AutoModelForCausalLM.from_config(
        make_config(family, num_layers=num_layers), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Return family -> directory of a tiny checkpoint with its tokenizer."""
    made: dict[tuple[str, int], Path] = {}

    def make(family: str = "llama", *, num_layers: int = 4) -> Path:
        key = (family, num_layers)
        if key not in made:
            path = tmp_path_factory.mktemp(f"{family}-{num_layers}")
            make_model(family, num_layers=num_layers).save_pretrained(path)
            make_tokenizer().save_pretrained(path)
            made[key] = path
        return made[key]

    return make


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 60,000 characters in paragraphs, with a little structure to predict."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(50)]
    paragraphs = [" ".join(rng.choices(words, k=40)) + "." for _ in range(300)]
    path = tmp_path_factory.mktemp("text") / "notes.txt"
    path.write_text("\n\n".join(paragraphs))
    return path


@pytest.fixture(scope="session")
def finished_study(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> "Finished":
    """A finished study, of a licensed model with a hostile name; who changes its files puts them back, or works on a copy."""
    from tests.finished import NAME, Finished

    place = tmp_path_factory.mktemp("finished")
    model = shutil.copytree(make_checkpoint("qwen2"), place / NAME)
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: our-own\nlicense_link: LICENSE\n---\n# M\n")
    (model / "LICENSE").write_text("Ours.")
    return Finished(model, text_file, place)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Where Chromium is; pages are tested in a real browser, and without one these tests fail."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium here; install the distribution's package (Debian: apt-get install chromium)"
    return found


@pytest.fixture
def hub() -> Iterator["Hub"]:
    """A hub of this test's own, which holds nothing yet; processes find it by its ``environment``."""
    from tests.hub import serve

    with serve() as served:
        yield served


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgresServer"]:
    """A real PostgreSQL server of this process; whoever stops it starts it again."""
    from tests.postgres import run_server

    with run_server() as server:
        yield server
