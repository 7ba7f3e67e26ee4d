"""Make the landscapes that samplers are judged on: python -m benchmarks.landscapes --out build/landscapes

A landscape is a space of which every set of dropped layers, or of attentions and MLPs, is scored. Four are the embedded
model's; for deeper ones small Llamas of 22 and 32 layers are trained on the standard library's source first. Finished
landscapes are passed over; training goes on where it was stopped. About 90 minutes on one core.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from msgspec import structs

from benchmarks import demo_model
from seed import demo, sessions, study_dir
from seed.console import Terminal
from seed.optimize.space import enumerate_candidates
from seed.plans import read_plan
from seed.proxy.sweep import Sweep
from seed.scores import ScoreStore
from seed.search import find_frontier

# Attention and MLP of five layers.
PARTS = {"parts": ("layer", "attention", "mlp"), "droppable_layers": (6, 7, 8, 9, 10)}
# name -> layers of the model (12: the embedded one), most layers dropped, proxy, other settings of the space
LANDSCAPES = {
    "demo12_closed_form": (12, 4, "closed-form", {}),
    "demo12_no_recovery": (12, 8, "none", {}),
    "demo12_parts_closed_form": (12, 2, "closed-form", PARTS),
    "demo12_parts_no_recovery": (12, 3, "none", PARTS),
    "llama22_closed_form": (22, 3, "closed-form", {}),
    "llama22_no_recovery": (22, 3, "none", {}),
    "llama32_closed_form": (32, 2, "closed-form", {}),
    "llama32_no_recovery": (32, 3, "none", {}),
}
WIDTH = 64
TRAINING_SECONDS = 900
BATCH = 8  # windows
LEARNING_RATE = 6e-3


def train_model(terminal: Terminal, num_layers: int, path: Path) -> None:
    """Train a Llama of so many layers for ``TRAINING_SECONDS`` with the embedded model's tokenizer, and save it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.MODEL_DIRECTORY)
    splits, _, _ = demo_model.collect_texts([])
    stream = demo_model.encode(tokenizer.backend_tokenizer, splits["training"])
    model = demo_model.make_model(0, num_layers=num_layers, width=WIDTH)
    optimizers = demo_model.make_optimizers(model, learning_rate=LEARNING_RATE, weight_decay=0.1)
    batches = demo_model.sample_batches(stream, np.zeros(0), batch=BATCH, steps=10**9, start=0, rng_seed=0)
    began, losses = time.monotonic(), []
    with terminal.stage(f"train {num_layers} layers", total=TRAINING_SECONDS) as advance:
        before = 0.0
        for step, tokens in enumerate(batches):
            share = (time.monotonic() - began) / TRAINING_SECONDS
            if share >= 1:
                break
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50, 2 * (1 - share))
            logits = model(tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            advance(share * TRAINING_SECONDS - before, f"{step} steps, loss {np.mean(losses[-50:]):.3f}")
            before = share * TRAINING_SECONDS
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)


def score_landscape(name: str, *, model: str, studies: Path) -> dict[str, object]:
    """Score every set; losses on validation text, nats per token."""
    num_layers, max_dropped, proxy, more = LANDSCAPES[name]
    settings = {"model": model, "max_dropped": max_dropped if proxy == "closed-form" else 1, "distill": False} | more
    if num_layers != 12 or more:
        data = {"recovery_text": "demo", "calibration_tokens": 4096, "validation_tokens": 4096, "window_tokens": 256}
        settings |= data | {"prompt_tokens": 16, "new_tokens": 2}
    study = study_dir.StudyFolder(studies / name)
    find_frontier(**settings, studies_dir=studies, study=study.name, sweep_budget=1e6, latency_repeats=3)
    protocol = read_plan(study).protocol
    session = sessions.reopen(study, protocol)
    sweep = Sweep(sessions.prepare_instruments(session), ScoreStore(study.scores))
    space = structs.replace(protocol.space, max_dropped=max_dropped)
    candidates = list(enumerate_candidates(space))
    qualities = (
        sweep.measure_unrecovered(candidates)
        if proxy == "none"
        else [sweep.measure(candidate) for candidate in candidates]
    )
    dense = sweep.instruments.dense_validation.loss
    return {
        "about": f"{num_layers}-layer Llama, {proxy}, {session.streams['validation'].num_tokens:,} validation "
        "tokens; nats per token by what is dropped",
        "num_layers": num_layers,
        "max_dropped": max_dropped,
        "losses": {"": round(dense, 5)}
        | {
            ",".join(candidate.parts): round(quality.loss, 5)
            for candidate, quality in zip(candidates, qualities, strict=True)
        },
    }


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.landscapes", description="Make landscapes.")
    parser.add_argument("--out", type=Path, default=Path("build/landscapes"), help="(default: %(default)s)")
    args = parser.parse_args()
    terminal = Terminal()
    for name, (num_layers, *_) in LANDSCAPES.items():
        path = args.out / f"{name}.json"
        if path.exists():
            continue
        model = "demo" if num_layers == 12 else str(args.out / f"llama{num_layers}")
        if model != "demo" and not Path(model).exists():
            train_model(terminal, num_layers, Path(model))
        landscape = score_landscape(name, model=model, studies=args.out / "studies")
        study_dir.write_bytes(path, json.dumps(landscape, indent=0).encode())
        terminal.say(f"{path}: {len(landscape['losses'])} sets")


if __name__ == "__main__":
    main()
