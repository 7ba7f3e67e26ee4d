"""Build the demo model again: python -m benchmarks.demo_model --out build/demo

Collects Python source that shares nothing with the held-out standard library, trains a 4,096-word
byte-level BPE and a 12-layer Llama on it, and writes a checkpoint, its card's figures (``log.json``)
and the hashes of what was trained on. Runs on the CPU, checkpoints as it goes; run it again to go on.

Training follows usual practice: Muon for the matrices (Jordan et al. 2024, as in torch.optim.Muon),
AdamW for embeddings and norms, a constant learning rate with a linear end.
"""

import argparse
import json
import math
import platform
import random
import shutil
import site
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from seed.demo import library

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
WINDOW_TOKENS = 256
PACKAGE_CHARACTERS = 30_000_000  # of installed packages, a random sample; a few epochs of them at most


def collect_texts(extra_roots: list[Path]) -> tuple[dict[str, list[str]], list[str], set[int]]:
    """Return the standard library's splits, further training texts, and the windows trained on."""
    root = library.find_root()
    splits: dict[str, list[str]] = {split: [] for split in library.PARTS}
    candidates: list[tuple[bool, str]] = []
    held_out: set[int] = set()
    for path, text in library.iterate_modules(root, with_tests=True):
        is_test = not library.TEST_DIRECTORIES.isdisjoint(path.split("/"))
        split = library.split_of(path)
        if split == "training":
            candidates.append((not is_test, text))
        elif not is_test:
            splits[split].append(text)
            held_out |= library.line_windows(text)
    packages = [text for extra_root in extra_roots for _, text in library.iterate_modules(extra_root)]
    random.Random(0).shuffle(packages)
    sizes = np.cumsum([len(text) for text in packages])
    candidates += [(False, text) for text in packages[: int(np.searchsorted(sizes, PACKAGE_CHARACTERS))]]
    extra: list[str] = []
    trained_on: set[int] = set()
    seen: set[int] = set()
    for is_library, text in candidates:
        windows = library.line_windows(text)
        if library.repeats(windows, held_out):
            continue
        if len(windows & seen) > 0.5 * len(windows) and not is_library:
            continue  # vendored twice
        seen |= windows
        trained_on |= library.sample_windows(windows)
        (splits["training"] if is_library else extra).append(text)
    for split in library.PARTS[1:]:
        splits[split] = library.drop_repeated(splits[split], trained_on)
    return splits, extra, trained_on


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE; one special token ends every document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Encode documents into one stream of uint16 tokens, each document followed by the end token."""
    pieces = [np.array([*encoding.ids, 0], dtype=np.uint16) for encoding in tokenizer.encode_batch(texts)]
    return np.concatenate(pieces)


def make_model(rng_seed: int, *, num_layers: int = 12, width: int = 128) -> transformers.LlamaForCausalLM:
    """Return an untrained model; residual projections start small, as in GPT-2."""
    torch.manual_seed(rng_seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


def make_optimizers(
    model: torch.nn.Module, *, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def scale_of(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: warm-up, constant for half the run, linear to zero."""
    return min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)


def sample_batches(
    library_stream: np.ndarray, extra_stream: np.ndarray, *, batch: int, steps: int, start: int, rng_seed: int
) -> Iterator[torch.Tensor]:
    """Yield (batch, window + 1) token windows; each step has its own random state, so runs resume exactly."""
    for step in range(start, steps):
        rng = np.random.default_rng([rng_seed, step])
        rows = []
        for row in range(batch):
            stream = library_stream if row < 0.6 * batch or not len(extra_stream) else extra_stream
            offset = int(rng.integers(0, len(stream) - WINDOW_TOKENS - 1))
            rows.append(stream[offset : offset + WINDOW_TOKENS + 1].astype(np.int64))
        yield torch.from_numpy(np.stack(rows))


@torch.no_grad()
def evaluate(model: torch.nn.Module, stream: np.ndarray, num_bytes: int) -> dict[str, float]:
    """Perplexity over non-overlapping windows (first token of each unscored), and bits per byte."""
    rows = len(stream) // WINDOW_TOKENS
    windows = torch.from_numpy(stream[: rows * WINDOW_TOKENS].astype(np.int64)).view(rows, WINDOW_TOKENS)
    total = 0.0
    for batch in windows.split(16):
        logits = model(batch, use_cache=False).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    scored = rows * (WINDOW_TOKENS - 1)
    loss = total / scored
    return {
        "perplexity": math.exp(loss),
        "loss_nats_per_token": loss,
        "bits_per_byte": loss / math.log(2) * len(stream) / num_bytes,
        "tokens": scored,
    }


def train(args: argparse.Namespace) -> None:
    """Run the whole build, or go on where the last one stopped."""
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    splits, extra, trained_on = collect_texts(args.extra)
    tokenizer = train_tokenizer(splits["training"])
    streams = {split: encode(tokenizer, texts) for split, texts in splits.items()}
    extra_stream = encode(tokenizer, extra) if extra else np.zeros(0, dtype=np.uint16)
    sizes = {split: len(stream) for split, stream in streams.items()} | {"extra": len(extra_stream)}
    print(f"tokens: {sizes}", flush=True)

    model = make_model(args.rng_seed)
    optimizers = make_optimizers(model, learning_rate=args.learning_rate, weight_decay=args.weight_decay)
    batch_tokens = args.batch * WINDOW_TOKENS
    steps = args.tokens // batch_tokens
    checkpoint = out / "checkpoint.pt"
    start, seconds, curve = 0, 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start, seconds, curve = state["step"], state["seconds"], state["curve"]
        print(f"resuming at step {start}", flush=True)

    compiled = torch.compile(model) if args.compile else model
    batches = sample_batches(
        streams["training"], extra_stream, batch=args.batch, steps=steps, start=start, rng_seed=args.rng_seed
    )
    model.train()
    last = time.monotonic()
    running = []
    for step, tokens in enumerate(batches, start):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * scale_of(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = compiled(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            now = time.monotonic()
            seconds, last = seconds + now - last, now
            mean = sum(running) / len(running)
            curve.append([(step + 1) * batch_tokens, round(mean, 4)])
            running = []
            left = seconds / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps}  loss {mean:.4f}  {seconds:.0f} s, {left / 60:.0f} min left", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
                "seconds": seconds,
                "curve": curve,
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)

    finish(model, tokenizer, splits, streams, trained_on, out=out, log={
        "tokens_seen": steps * batch_tokens,
        "seconds": round(seconds),
        "train_curve": curve,
        "streams": sizes,
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "extra")},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    })  # fmt: skip


def finish(
    model: transformers.LlamaForCausalLM,
    tokenizer: Tokenizer,
    splits: dict[str, list[str]],
    streams: dict[str, np.ndarray],
    trained_on: set[int],
    *,
    out: Path,
    log: dict[str, Any],
) -> None:
    """Write the checkpoint in bf16, judge what was written, and leave the log beside it."""
    target = out / "model"
    shutil.rmtree(target, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(target)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=512
    )
    fast.save_pretrained(target)
    np.save(out / "training_windows.npy", np.array(sorted(trained_on), dtype=np.uint32))
    judged = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, use_safetensors=True).eval()
    for split in ("validation", "test"):
        num_bytes = sum(len(text.encode()) for text in splits[split])
        log[split] = evaluate(judged, streams[split], num_bytes)
        print(split, log[split], flush=True)
    (out / "log.json").write_text(json.dumps(log, indent=1))
    (target / "README.md").write_text(write_card(log))
    print(f"wrote {target}", flush=True)


def write_card(log: dict[str, Any]) -> str:
    """The model card, from the log of the run that made the model."""
    settings, validation, test = log["settings"], log["validation"], log["test"]
    curve = log["train_curve"]
    shown = [curve[round(i * (len(curve) - 1) / 9)] for i in range(10)]
    points = ", ".join(f"{tokens / 1e6:.1f} M {loss:.2f}" for tokens, loss in shown)
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Seed's demo model

A Llama that reads Python: 12 layers, 128 wide, 4 heads, MLP 352, tied embeddings, {VOCABULARY:,}-word byte-level BPE, windows of
{WINDOW_TOKENS} tokens, bf16. Small enough to ship inside the package, trained well enough that every layer matters. It exists to
show `python -m seed.search`; it is of no other use.

| held-out standard library | perplexity | bits a byte | tokens scored |
|---|---|---|---|
| validation | {validation["perplexity"]:.2f} | {validation["bits_per_byte"]:.3f} | {validation["tokens"]:,} |
| test | {test["perplexity"]:.2f} | {test["bits_per_byte"]:.3f} | {test["tokens"]:,} |

Non-overlapping windows of {WINDOW_TOKENS} tokens, the first of each unscored, float32.

## Data

The standard library of Python {log["python"]}: {log["streams"]["training"]:,} tokens of modules whose path hashes to the training
split (first byte of sha256 of the posix path, mod 10: 8 is validation, 9 is test), in 60 % of the windows. The rest comes from the
library's test packages and a random sample of installed packages, {log["streams"]["extra"]:,} tokens. A training file that shares
more than {library.LEAK_FRACTION:.0%} of its four-line windows, or more than {library.LEAK_WINDOWS}, with a held-out module was left out. The
tokenizer was trained on the training split of the library alone. `training_windows.npy` beside this folder holds hashes of what was
trained on, so that other Python versions can leave out held-out modules that repeat it.

## Training

`python -m benchmarks.demo_model`: {log["tokens_seen"]:,} tokens in {log["seconds"] / 60:.0f} minutes on two cores; {settings["batch"]} windows a
step; Muon for the layers' matrices and AdamW for embeddings and norms, both at a peak rate of {settings["learning_rate"]:g}, constant
for half of the run and then linear to zero; weight decay {settings["weight_decay"]:g} on the matrices; gradients clipped at 1; bf16
autocast; torch {log["torch"]}, transformers {log["transformers"]}. Training loss (nats) by tokens seen: {points}.
"""


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--batch", type=int, default=16, help="windows of 256 tokens in a step")
    parser.add_argument("--learning-rate", type=float, default=6e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--rng-seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--extra",
        type=Path,
        nargs="*",
        default=[Path(path) for path in site.getsitepackages()],
        help="folders with further Python source to train on (default: the installed packages)",
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
