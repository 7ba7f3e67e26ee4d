"""Memory at most: what lies in it during a search or a training, part by part, and how each comes about."""

from dataclasses import dataclass

from seed.plans import Protocol
from seed.reporting.wording import format_bytes
from seed.scoring.memory import TRAINED_TOKENS, count_logits_bytes, count_way_back, must_recompute
from seed.scoring.subsets import SIBLING_BYTES, estimate_memory
from seed.scoring.sweep import RELEASED_BYTES
from seed.stages.shapes import Shape

SHORTER_TEXT = "lower --calibration-tokens and --validation-tokens"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the things that lie in memory, and how its size comes about."""

    what: str
    num_bytes: int
    detail: str = ""
    cure: str = "choose a smaller model"  # what makes it smaller


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Memory at most, and its parts."""

    num_bytes: int
    parts: tuple[Part, ...]
    remark: str

    @property
    def cure(self) -> str:
        """What makes its largest part smaller."""
        return max(self.parts, key=lambda part: part.num_bytes).cure

    def describe(self, *, in_detail: bool) -> str:
        """The parts in words."""
        words = (f"{part.what} {format_bytes(part.num_bytes)}{part.detail * in_detail}" for part in self.parts)
        return "; ".join(words) + self.remark


def estimate_peak(
    shape: Shape,
    protocol: Protocol,
    *,
    trains: bool,
    climbs: bool,
    num_dropped: int | None = None,
    together: int = 1,
) -> Peak:
    """Memory at most, with so many students side by side; on a GPU with what training keeps for the way back, and with the best weights on the host.

    On a GPU a student without ``num_dropped`` layers is counted; None: the largest.
    """
    layers, width = shape.num_layers, shape.width
    dense = Part(what="dense model", num_bytes=shape.num_params * shape.number_bytes)
    sweep, training, rest = [], [], []
    cure = "lower --lora-rank" if protocol.lora_rank else "train low-rank updates only with --lora-rank 16"
    if shape.mlp_width:
        states = estimate_memory(
            num_layers=layers,
            width=width,
            mlp_width=shape.mlp_width,
            calibration_tokens=shape.calibration_tokens,
            validation_tokens=shape.validation_tokens,
            number_bytes=shape.number_bytes,
        )
        detail = (
            f": (L + 1) (2 C + V) D numbers of states, and L times (C + V) (D + F) numbers and 72 F F bytes that siblings "
            f"share, of these {format_bytes(SIBLING_BYTES)} at most (L = {layers}, C = {shape.calibration_tokens:,}, "
            f"V = {shape.validation_tokens:,}, D = {width:,}, F = {shape.mlp_width:,})"
        )
        sweep.append(Part(what="a sweep", num_bytes=states, detail=detail, cure=SHORTER_TEXT))
    if trains and not shape.on_gpu:
        # float32 weights, gradient, two moments and the best weights; with LoRA a copy of the weights, and one to judge
        each = 2 * shape.number_bytes if protocol.lora_rank else 5 * 4
        updates = 5 * 4 * (protocol.lora_rank or 0) * shape.update_params
        what = "a student in training" if together == 1 else f"{together} students in training side by side"
        training.append(Part(what=what, num_bytes=together * (shape.num_params * each + updates), cure=cure))
    if trains and shape.on_gpu:
        kept = layers - (protocol.space.min_dropped if num_dropped is None else num_dropped)
        weights = shape.num_params - (layers - kept) * shape.layer_params
        tokens = max(1, TRAINED_TOKENS // protocol.window_tokens) * protocol.window_tokens
        if protocol.lora_rank:
            what, each = "a student's weights, and a copy to judge", 2 * shape.number_bytes
        else:  # at a look at validation text the copy to judge stands where the gradient was
            what, each = "a student's float32 weights, gradient and two moments", 4 * 4
        what += f", {together} times" if together > 1 else ""
        held = together * (weights * each + 4 * 4 * (protocol.lora_rank or 0) * shape.update_params)
        training.append(Part(what=what, num_bytes=held, detail=f" ({kept} layers)", cure=cure))
        training.append(
            _describe_way_back(
                shape,
                num_layers=kept,
                tokens=tokens,
                others=dense.num_bytes + held,
                is_low_rank=bool(protocol.lora_rank),
            )
        )
    if shape.on_gpu:
        logits = count_logits_bytes(shape.vocabulary)
        rest.append(Part(what="logits, some positions at a time", num_bytes=logits))
    swept, trained = (sum(part.num_bytes for part in parts) for parts in (sweep, training))
    timed = _describe_timed(shape, protocol)
    if num_dropped is None and timed.num_bytes > swept + trained + sum(
        part.num_bytes for part in rest
    ):  # nothing else is there then
        return Peak(
            num_bytes=dense.num_bytes + timed.num_bytes,
            parts=(dense, timed),
            remark=" (the rest comes later and takes less)",
        )
    lets_go = swept > RELEASED_BYTES and not climbs
    return Peak(
        num_bytes=dense.num_bytes
        + (max(swept, trained) if lets_go else swept + trained)
        + sum(part.num_bytes for part in rest),
        parts=(dense, *sweep, *training, *rest),
        remark=" (training begins after the sweep's states are let go)" if lets_go and trained else "",
    )


def _describe_timed(shape: Shape, protocol: Protocol) -> Part:
    """What decoding holds while it is timed: the KV cache of all sequences, and what reading the prompts passes on."""
    batch, tokens = protocol.latency_batch, protocol.latency_batch * protocol.prompt_tokens
    cache = batch * (protocol.prompt_tokens + protocol.new_tokens) * shape.cache_bytes * (1 + protocol.compiled)
    passing = shape.vocabulary + 4 * shape.width + 2 * max(shape.mlp_width, 4 * shape.width)
    is_ours = protocol.latency_command is None
    return Part(
        what=f"KV cache and logits of {batch:,} sequences that are timed",
        num_bytes=is_ours * (cache + tokens * (passing * shape.number_bytes + 8)),
        cure="lower --latency-batch and --prompt-tokens",
    )


def _describe_way_back(shape: Shape, *, num_layers: int, tokens: int, others: int, is_low_rank: bool) -> Part:
    """What training keeps for the way back: all, or little where that would be too much beside ``others``."""

    def count(recomputes: bool) -> int:
        return count_way_back(
            num_layers=num_layers,
            tokens=tokens,
            width=shape.width,
            kept_bytes=shape.kept_bytes,
            kept_copies=shape.kept_copies,
            recomputes=recomputes,
        )

    recomputes = not is_low_rank and must_recompute(
        gpu_bytes=shape.gpu_bytes,
        dense_bytes=0,
        student_bytes=others,
        way_back=count(False),
        logits_bytes=count_logits_bytes(shape.vocabulary),
    )
    what = f"what {tokens:,} tokens leave in its layers for the way back"
    what += ", each run again then" if recomputes else ""
    return Part(what=what, num_bytes=count(recomputes))
