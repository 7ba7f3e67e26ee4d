"""A candidate is scored by cheaper proxies first, and further where the screen lets it through; nothing is measured that is known."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from seed.distillation.loop import DistillSettings
from seed.errors import CandidateError
from seed.proxy import proxy as proxies
from seed.proxy.instruments import exported_losses, size_of
from seed.proxy.proxy import Proxy
from seed.proxy.sweep import Sweep
from seed.records import Candidate, Evaluation, Quality
from seed.scores import ScoreStore
from tests.models.families import compute_logits, make_tokens
from tests.proxy.opened import CUT, DENSE, keep, open_instruments, time_candidate

SHORT = DistillSettings(steps=12, batch_windows=8, micro_batch=4, learning_rate=3e-3, rng_seed=0, looks=3)
STILL = structs.replace(SHORT, steps=2, learning_rate=1e-12)  # what comes back is what it started from


def make_proxy(
    directory: Path,
    name: str,
    *,
    family: str = "llama",
    short: Callable[[Candidate], DistillSettings] = lambda candidate: SHORT,
) -> Proxy:
    return Proxy(Sweep(open_instruments(family), ScoreStore(directory / "scores.sqlite")), name=name, short=short)


def evaluate(proxy: Proxy, candidate: Candidate = CUT, **more: Any) -> Evaluation:
    return proxy.evaluate(candidate, latency=time_candidate(candidate), **more)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every training job."""
    seen: list[Any] = []
    train = proxies.train_students

    def spy(instruments, jobs):
        seen.extend(jobs)
        return train(instruments, jobs)

    monkeypatch.setattr(proxies, "train_students", spy)
    return seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("closed-form", ["closed-form"]),
        ("short-distillation", ["closed-form", "none", "short-distillation"]),
    ],
)
def test_each_proxy_fills_its_qualities_and_what_is_known_is_not_measured_again(
    name: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Any]
) -> None:
    proxy, tokens = make_proxy(tmp_path, name), make_tokens()
    instruments = proxy.sweep.instruments
    teacher = instruments.teacher
    before = compute_logits(teacher, tokens)
    evaluation = evaluate(proxy)
    assert list(evaluation.qualities) == expected
    assert (evaluation.candidate, evaluation.skipped_because) == (CUT, None)
    assert (evaluation.latency, evaluation.size) == (time_candidate(CUT), size_of(instruments, CUT))
    assert evaluation.seconds > 0
    for scored_by, quality in evaluation.qualities.items():
        assert quality.document_losses_path == f"scores.sqlite#{scored_by}/{CUT.key}"
        assert sum(proxy.sweep.rows[CUT.key][scored_by].sums) / quality.tokens == pytest.approx(quality.loss, rel=1e-12)
        assert (quality.tokens, quality.documents) == (12 * 31, 6)
    if name != "short-distillation":
        quality = evaluate(proxy, DENSE).qualities[name]
        assert (quality.ppl_ratio, quality.ppl_ratio_standard_error) == (1.0, 0.0)
    # the teacher stays as it was, and whoever scored something else before finds the same
    other = make_proxy(tmp_path / "other", name)
    evaluate(other, keep(0, 1, 2))
    assert evaluate(other).qualities == evaluation.qualities
    assert torch.equal(compute_logits(teacher, tokens), before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())
    jobs.clear()

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    for function in ("measure_unrecovered", "make_walker"):
        monkeypatch.setattr(f"seed.proxy.sweep.{function}", fail)
    assert evaluate(make_proxy(tmp_path, name)).qualities == evaluation.qualities
    assert jobs == []


# ---- short distillation


def test_short_distillation_starts_from_the_better_start(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path, "short-distillation", short=lambda candidate: STILL)
    [raw] = proxy.sweep.measure_unrecovered([CUT])
    losses = {name: quality.loss for name, quality in evaluate(proxy).qualities.items()}
    assert losses["closed-form"] < losses["none"] - 1e-3
    assert losses["short-distillation"] == pytest.approx(losses["closed-form"], abs=1e-5)
    other = make_proxy(tmp_path / "other", "short-distillation", short=lambda candidate: STILL)
    dense = other.sweep.instruments.dense_validation
    worse = replace(dense, sums=dense.sums + dense.counts * (raw.loss - dense.loss + 1))
    other.sweep.keep(CUT, "closed-form", worse, seconds=0.0)
    assert evaluate(other).qualities["short-distillation"].loss == pytest.approx(raw.loss, abs=1e-6)


@pytest.mark.parametrize("learning_rate", [3e-3, 30.0])
def test_the_score_is_that_of_the_weights_of_the_best_look(
    learning_rate: float, tmp_path: Path, jobs: list[Any]
) -> None:
    settings = structs.replace(SHORT, learning_rate=learning_rate)
    proxy = make_proxy(tmp_path, "short-distillation", short=lambda candidate: settings)
    quality = evaluate(proxy).qualities["short-distillation"]
    instruments = proxy.sweep.instruments
    losses = exported_losses(instruments, jobs[0].student, instruments.validation)
    assert proxy.sweep.rows[CUT.key]["short-distillation"].sums == losses.sums.tolist()
    assert quality.loss == losses.loss


def test_low_rank_updates_in_mixed_precision_lower_the_loss_too(tmp_path: Path) -> None:
    settings = structs.replace(SHORT, lora_rank=4, mixed_precision=True, learning_rate=1e-2)
    qualities = evaluate(make_proxy(tmp_path, "short-distillation", short=lambda candidate: settings)).qualities
    assert qualities["short-distillation"].loss < qualities["closed-form"].loss - 1e-3


# ---- the screen


class Screened:
    """Refuses one candidate."""

    def __init__(self) -> None:
        self.asked: list[tuple[Candidate, Quality]] = []

    def judge(self, candidate: Candidate, quality: Quality, *, structure: str) -> str | None:
        self.asked.append((candidate, quality))
        return "hopeless" if candidate == CUT else None


def test_a_candidate_that_is_not_worth_it_is_not_distilled(tmp_path: Path, jobs: list[Any]) -> None:
    screen = Screened()
    evaluate(make_proxy(tmp_path, "closed-form"), screen=screen)  # it is of the last proxy only
    assert screen.asked == []
    proxy = make_proxy(tmp_path, "short-distillation", short=lambda candidate: STILL)
    skipped, climbed = (evaluate(proxy, candidate, screen=screen) for candidate in (CUT, keep(0, 1, 3)))
    assert screen.asked == [(each.candidate, each.qualities["closed-form"]) for each in (skipped, climbed)]
    assert (skipped.skipped_because, set(skipped.qualities)) == ("hopeless", {"closed-form"})
    assert climbed.skipped_because is None
    assert len(jobs) == 1
    again = evaluate(proxy, climbed.candidate, screen=screen)  # what was distilled before is not screened
    assert (again.qualities, len(screen.asked)) == (climbed.qualities, 2)


# ---- what holds throughout


def test_a_family_without_closed_form_climbs_past_it(tmp_path: Path) -> None:
    proxy, screen = make_proxy(tmp_path, "short-distillation", family="opt_post_norm"), Screened()
    assert proxy.sweep.instruments.gains is None
    qualities = evaluate(proxy, screen=screen).qualities
    assert list(qualities) == ["none", "short-distillation"]
    assert qualities["short-distillation"].loss < qualities["none"].loss
    assert screen.asked == []


def test_out_of_memory_fewer_windows_go_at_once_and_the_score_is_the_same(tmp_path: Path) -> None:
    wanted = evaluate(make_proxy(tmp_path / "wanted", "closed-form"))
    proxy = make_proxy(tmp_path / "scarce", "closed-form")
    with allow_windows(proxy, 2):
        found = evaluate(proxy)
    assert proxy.sweep.instruments.micro_batch == 2
    for scored_by, quality in wanted.qualities.items():
        assert found.qualities[scored_by].loss == pytest.approx(quality.loss, rel=1e-5)


def test_a_candidate_for_which_no_memory_suffices_is_refused_with_the_reason(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path, "closed-form")
    with allow_windows(proxy, 0), pytest.raises(CandidateError, match=rf"{CUT.key}: out of memory.*allocate memory"):
        evaluate(proxy)
    assert evaluate(proxy).qualities["closed-form"].loss > 0


@contextlib.contextmanager
def allow_windows(proxy: Proxy, most: int) -> Iterator[None]:
    """Let the model's layers ask for more memory than there is when more windows than this go through at once."""

    def ask(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if len(hidden) > most:
            torch.empty(2**50)

    layer = proxy.sweep.instruments.anatomy.layers[CUT.kept_layers[-1]]
    handle = layer.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
