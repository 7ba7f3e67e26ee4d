"""What a student is trained towards, and the gradient of that: the dense model's predictions, the text itself, its states.

The dense model's part of a batch is computed once, however many students learn from it. Logits of all models are made
by the family's own head, some positions at a time, so that no vocabulary is too large.

Shapes: B sequences, T tokens, D hidden width, V vocabulary, L layers of the dense model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seed.data.corpus import TokenStream
from seed.distillation.processes import SINGLE_PROCESS, SingleProcess
from seed.distillation.teacher_states import TeacherStates
from seed.evaluation.perplexity import DEFAULT_LOGITS_BYTES, split_for_head, split_positions
from seed.models.anatomy import Anatomy
from seed.records import Record

Part = tuple[slice, slice]  # rows and columns of a batch
# Float32 logits that loss and gradient are computed from at once: on the CPU what its caches hold, several times over.
CACHED_BYTES = {"cpu": 2**20}


class Objective(Record, frozen=True, kw_only=True):
    """(1 - ``ce_share``) T^2 KL(dense || student) at temperature T + ``ce_share`` cross-entropy + ``hidden_weight`` states.

    Forward KL with its T^2 and the mixture are those of Hinton et al. 2015 (arXiv 1503.02531), section 2. The states'
    part is, for each kept layer, the squared distance of its output to the dense model's state just before the next
    kept layer's original position, divided by that state's square; the mean over layers.
    """

    temperature: float = 1.0
    ce_share: float = 0.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        assert self.temperature > 0
        assert 0 <= self.ce_share <= 1
        assert self.hidden_weight >= 0

    @property
    def needs_teacher(self) -> bool:
        """Is anything asked of the dense model?"""
        return self.ce_share < 1 or self.hidden_weight > 0

    @property
    def needs_states(self) -> bool:
        """Are the dense model's states at every layer wanted? Only its last ones are stored."""
        return self.hidden_weight > 0

    def describe(self) -> str:
        """The loss in words."""
        parts = []
        if self.ce_share < 1:
            parts.append(f"forward KL to the dense model, temperature {self.temperature:g}")
        if self.ce_share > 0:
            parts.append("cross-entropy" if self.ce_share == 1 else f"cross-entropy ({self.ce_share:g} of the mixture)")
        if self.hidden_weight > 0:
            parts.append(f"{self.hidden_weight:g} times the distance of the layers' states")
        return " + ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A student as an objective sees it. ``boundaries``: of each of its layers, which of the dense model's L + 1 states its output is to meet."""

    anatomy: Anatomy
    boundaries: tuple[int, ...] | None = None


class _TeacherBatch:
    """The dense model's part of some windows: computed when first asked for, and kept where several students ask."""

    def __init__(
        self,
        dense: Anatomy,
        tokens_BT: Tensor,
        objective: Objective,
        *,
        num_counted: int,
        mixed_precision: bool,
        is_shared: bool,
    ) -> None:
        self.dense = dense
        self.tokens_BT = tokens_BT
        self.num_counted = num_counted  # so many windows teach something; the rest only keep processes in step
        self.objective = objective
        self.mixed_precision = mixed_precision
        self.states: list[Tensor] = []  # at every layer, where they are wanted
        self.last_BTD: Tensor | None = None
        self.is_shared = is_shared
        self._wanted: dict[str, Tensor] = {}

    @torch.no_grad()
    def predict(self, part: Part) -> Tensor:
        """Log-probabilities (..., V) of the dense model at the objective's temperature."""
        found = self._wanted.get(str(part))
        if found is None:
            assert self.last_BTD is not None
            with torch.autocast(self.last_BTD.device.type, dtype=torch.bfloat16, enabled=self.mixed_precision):
                logits = self.dense.compute_logits(self.last_BTD[part], self.tokens_BT[part])
            found = soften_in_place(logits, temperature=self.objective.temperature)
            if self.is_shared:
                self._wanted[str(part)] = found
        return found


def accumulate_gradients(
    learners: Sequence[Learner],
    dense: Anatomy,
    recovery: TokenStream,
    windows: Tensor,
    objective: Objective,
    *,
    micro_batch: int,
    mixed_precision: bool,
    teacher_states: TeacherStates,
    recomputes: bool = False,
    processes: SingleProcess = SINGLE_PROCESS,
) -> list[float | None]:
    """Add the gradient of the batch's mean loss to each student's weights; return each one's KL divergence, nats per token.

    Layers run on ``micro_batch`` windows at once, one student after another. The head follows on fewer positions at a
    time: each part's gradient goes back to the last hidden state, and from there through the layers once. The
    divergence is None where the objective does not ask for it. Of several processes each takes its share of the windows;
    their students' weights are sharded, and add up the gradients by themselves.
    """
    device = dense.device
    batch_tokens = len(windows) * recovery.tokens_NT.shape[1]
    windows, num_counted = processes.take_share(windows)
    tokens_BT = recovery.tokens_NT[windows].to(device)
    stored_BTD = teacher_states(windows) if objective.needs_teacher and not objective.needs_states else None
    totals = [torch.zeros((), dtype=torch.float64, device=device) for _ in learners]
    for rows in torch.arange(len(windows)).split(micro_batch):
        teacher_batch = _TeacherBatch(
            dense,
            tokens_BT[rows],
            objective,
            num_counted=max(0, num_counted - int(rows[0])),
            mixed_precision=mixed_precision,
            is_shared=len(learners) > 1,
        )
        if objective.needs_states:
            teacher_batch.states = dense.trace(teacher_batch.tokens_BT)
            teacher_batch.last_BTD = teacher_batch.states[-1]
        elif stored_BTD is not None:
            teacher_batch.last_BTD = stored_BTD[rows]
        for learner, total in zip(learners, totals, strict=True):
            total.add_(_learn(learner, teacher_batch, batch_tokens=batch_tokens, recomputes=recomputes))
    if objective.ce_share == 1:
        return [None for _ in learners]
    return [float(processes.add_up(total)) / batch_tokens for total in totals]


def _learn(learner: Learner, teacher_batch: _TeacherBatch, *, batch_tokens: int, recomputes: bool) -> Tensor:
    """One student's gradient on one teacher_batch; return the sum of its divergences, nats."""
    anatomy, objective, tokens_BT = learner.anatomy, teacher_batch.objective, teacher_batch.tokens_BT
    device = tokens_BT.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    with (
        anatomy.record_states(objective.needs_states) as outputs,
        anatomy.recompute_layers(recomputes),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=teacher_batch.mixed_precision),
    ):
        hidden = anatomy.run_layers(tokens_BT)
    following_BT = torch.cat([tokens_BT[:, 1:], tokens_BT[:, :1]], dim=1)
    counts_BT = torch.ones_like(tokens_BT, dtype=torch.float32)
    counts_BT[:, -1] = 0  # nothing follows a window's last token
    counts_BT *= objective.ce_share * tokens_BT.shape[1] / max(1, tokens_BT.shape[1] - 1)
    leaf = hidden.detach().requires_grad_(True)
    for part in split_for_head(tokens_BT, vocabulary=anatomy.config.vocab_size):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=teacher_batch.mixed_precision):
            logits = anatomy.compute_logits(leaf[part], tokens_BT[part])
        gradient = logits.detach()
        divergence = put_gradient(
            gradient,
            teacher_batch.predict(part) if objective.ce_share < 1 else None,
            following_BT[part],
            counts_BT[part],
            objective=objective,
            batch_tokens=batch_tokens,
        )
        num_counted = max(0, teacher_batch.num_counted - part[0].start)
        total += divergence[:num_counted].sum()
        gradient[num_counted:] = 0
        logits.backward(gradient)
    roots, gradients = [hidden], [leaf.grad]
    if objective.needs_states:
        assert learner.boundaries is not None, "matching states takes the layers' original places"
        distance = measure_state_distance(outputs, [teacher_batch.states[place] for place in learner.boundaries])
        roots.append(objective.hidden_weight * distance * (tokens_BT.numel() / batch_tokens))
        gradients.append(None)
    if hidden.requires_grad:
        torch.autograd.backward(roots, gradients)
    return total


@torch.no_grad()
def put_gradient(
    logits: Tensor,
    wanted: Tensor | None,
    following: Tensor,
    counts: Tensor,
    *,
    objective: Objective,
    batch_tokens: int,
) -> Tensor:
    """Overwrite a student's logits (B, T, V) by the objective's gradient, a few positions at a time; return the KL divergences (B, T), nats.

    The product that made the logits does not need them on the way back; where a family's does, autograd raises.

    Args:
        logits: raw.
        wanted: the teacher's log-probabilities, from ``soften``; None where only the text teaches.
        following: the token that follows each (B, T).
        counts: what each one's cross-entropy counts (B, T).
        objective: what is learnt.
        batch_tokens: what the gradient is divided by.
    """
    divergence = torch.zeros(logits.shape[:2], device=logits.device)
    for part in _split_for_cache(logits):
        gradient: Tensor | None = None
        if wanted is not None:
            divergence[part], gradient = kl_and_gradient(wanted[part], logits[part], temperature=objective.temperature)
            if objective.ce_share > 0:
                gradient *= 1 - objective.ce_share
        if objective.ce_share > 0:
            by_text = differentiate_cross_entropy(logits[part], following[part], counts[part])
            gradient = by_text if gradient is None else gradient.add_(by_text)
        assert gradient is not None
        logits[part] = gradient.div_(batch_tokens)
    return divergence


def _split_for_cache(logits: Tensor) -> Iterator[Part]:
    bytes_at_once = CACHED_BYTES.get(logits.device.type, DEFAULT_LOGITS_BYTES)
    return split_positions(logits, max(1, bytes_at_once // (4 * logits.shape[-1])))


@torch.no_grad()
def soften(logits: Tensor, *, temperature: float) -> Tensor:
    """Log-probabilities (..., V) of logits at a temperature, float32."""
    return torch.log_softmax(logits.float() / temperature if temperature != 1 else logits.float(), dim=-1)


@torch.no_grad()
def soften_in_place(logits: Tensor, *, temperature: float) -> Tensor:
    """The same of logits (B, T, V), in their place where they are float32."""
    found = logits.float()
    for part in _split_for_cache(found):
        found[part] = soften(found[part], temperature=temperature)
    return found


@torch.no_grad()
def kl_and_gradient(wanted: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) at every position in nats, and the gradient of T^2 times it by the student's logits (..., V).

    The gradient is T (softmax(student / T) - softmax(teacher / T)), float32 (Hinton et al. 2015, equation 2, times T^2).

    Args:
        wanted: the teacher's log-probabilities at the temperature, from ``soften``; left as they are.
        student_logits: raw.
        temperature: T.
    """
    found = soften(student_logits, temperature=temperature)
    probabilities = wanted.exp()
    divergence = wanted.sub(found).mul_(probabilities).sum(-1)
    gradient = found.exp_().sub_(probabilities)
    return divergence, gradient if temperature == 1 else gradient.mul_(temperature)


@torch.no_grad()
def differentiate_cross_entropy(student_logits: Tensor, following: Tensor, weights: Tensor) -> Tensor:
    """The gradient of weighted cross-entropies by the student's logits (..., V): weight (softmax(student) - the token that follows), float32."""
    gradient = torch.softmax(student_logits.float(), dim=-1)
    gradient.scatter_add_(-1, following[..., None], torch.full_like(following[..., None], -1, dtype=gradient.dtype))
    return gradient.mul_(weights[..., None])


def measure_state_distance(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the squared distance of states (B, T, D) to those wanted, as a share of the wanted ones' square."""
    shares = [
        (found.float() - target.float()).square().sum() / target.float().square().sum().clamp_min(1e-12)
        for found, target in zip(outputs, wanted, strict=True)
    ]
    return torch.stack(shares).mean()
