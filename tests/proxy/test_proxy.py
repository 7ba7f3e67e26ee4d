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
from seed.distillation.teacher_states import store_states
from seed.errors import CandidateError
from seed.models.anatomy import Anatomy
from seed.proxy import proxy as proxies
from seed.proxy.instruments import size_of, start_student, validation_losses
from seed.proxy.proxy import Proxy, choose_start
from seed.proxy.sweep import Sweep
from seed.records import Candidate, Quality
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
    settings: DistillSettings = SHORT,
    screen: Callable[[Candidate, Quality], str | None] = lambda candidate, quality: None,
) -> Proxy:
    sweep = Sweep(open_instruments(family), ScoreStore(directory / "scores.sqlite"))
    return Proxy(sweep, name=name, short=lambda candidate: settings, latency_of=time_candidate, screen=screen)


@pytest.fixture
def distilled(monkeypatch: pytest.MonkeyPatch) -> list[DistillSettings]:
    """Settings of every distillation."""
    seen: list[DistillSettings] = []
    train = proxies.train_students

    def spy(instruments, jobs):
        seen.extend(job.settings for job in jobs)
        return train(instruments, jobs)

    monkeypatch.setattr(proxies, "train_students", spy)
    return seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", ["none"]),
        ("closed-form", ["closed-form"]),
        ("short-distillation", ["closed-form", "none", "short-distillation"]),
    ],
)
def test_each_proxy_fills_its_qualities_and_what_is_known_is_not_measured_again(
    name: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilled: list[DistillSettings]
) -> None:
    proxy = make_proxy(tmp_path, name)
    instruments = proxy.sweep.instruments
    evaluation = proxy.evaluate(CUT)
    assert list(evaluation.qualities) == expected
    assert evaluation.candidate == CUT
    assert evaluation.latency == time_candidate(CUT)
    assert evaluation.size == size_of(instruments, CUT)
    assert evaluation.skipped_because is None
    assert evaluation.seconds > 0
    for scored_by, quality in evaluation.qualities.items():
        assert quality.document_losses_path == f"scores.sqlite#{scored_by}/{CUT.key}"
        row = proxy.sweep.rows[CUT.key][scored_by]
        assert sum(row.sums) / quality.tokens == pytest.approx(quality.loss, rel=1e-12)
        assert (quality.tokens, quality.documents) == (12 * 31, 6)
    if "none" in expected:
        student = start_student(instruments, CUT, None)
        assert Anatomy(student).num_layers == 2
        assert validation_losses(instruments, student).loss == evaluation.qualities["none"].loss
    if name != "short-distillation":
        quality = proxy.evaluate(DENSE).qualities[name]
        assert (quality.ppl_ratio, quality.ppl_ratio_standard_error) == (1.0, 0.0)
    distilled.clear()

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    for function in ("measure_unrecovered", "make_walker"):
        monkeypatch.setattr(f"seed.proxy.sweep.{function}", fail)
    assert make_proxy(tmp_path, name).evaluate(CUT).qualities == evaluation.qualities
    assert distilled == []


def test_cheaper_proxies_that_were_scored_before_come_along(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path, "closed-form")
    [raw] = proxy.sweep.measure_unrecovered([CUT])
    assert proxy.evaluate(CUT).qualities["none"] == raw
    assert "none" not in proxy.evaluate(keep(0, 1)).qualities


# ---- short distillation


def test_short_distillation_never_ends_worse_than_its_better_start(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path, "short-distillation")
    for kept in ((0, 3), (0, 1, 3), (2,)):
        qualities = proxy.evaluate(keep(*kept)).qualities
        start = choose_start(qualities)
        assert qualities[start].loss == min(qualities["none"].loss, qualities["closed-form"].loss)
        assert qualities["short-distillation"].loss <= qualities[start].loss + 1e-5
    assert qualities["short-distillation"].loss < qualities["none"].loss - 1e-3


def test_short_distillation_starts_from_the_better_start(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path, "short-distillation", settings=STILL)
    [raw] = proxy.sweep.measure_unrecovered([CUT])
    losses = {name: quality.loss for name, quality in proxy.evaluate(CUT).qualities.items()}
    assert losses["closed-form"] < losses["none"] - 1e-3
    assert losses["short-distillation"] == pytest.approx(losses["closed-form"], abs=1e-5)
    other = make_proxy(tmp_path / "other", "short-distillation", settings=STILL)
    dense = other.sweep.instruments.dense_validation
    worse = replace(dense, sums=dense.sums + dense.counts * (raw.loss - dense.loss + 1))
    other.sweep.keep(CUT, "closed-form", worse, seconds=0.0)
    assert other.evaluate(CUT).qualities["short-distillation"].loss == pytest.approx(raw.loss, abs=1e-6)


@pytest.mark.parametrize("learning_rate", [3e-3, 30.0])
def test_the_score_is_that_of_the_weights_of_the_best_look(
    learning_rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students: list[torch.nn.Module] = []
    train = proxies.train_students

    def spy(instruments, jobs):
        students.extend(job.student for job in jobs)
        return train(instruments, jobs)

    monkeypatch.setattr(proxies, "train_students", spy)
    proxy = make_proxy(tmp_path, "short-distillation", settings=structs.replace(SHORT, learning_rate=learning_rate))
    quality = proxy.evaluate(CUT).qualities["short-distillation"]
    losses = validation_losses(proxy.sweep.instruments, students[0])
    assert proxy.sweep.rows[CUT.key]["short-distillation"].sums == losses.sums.tolist()
    assert quality.loss == losses.loss


def test_the_candidate_decides_its_settings(tmp_path: Path, distilled: list[DistillSettings]) -> None:
    def choose(candidate: Candidate) -> DistillSettings:
        return structs.replace(STILL, frozen_layers=min(candidate.dropped_layers))

    sweep = Sweep(open_instruments(), ScoreStore(tmp_path / "scores.sqlite"))
    proxy = Proxy(sweep, name="short-distillation", short=choose, latency_of=time_candidate)
    for candidate in (keep(0, 1, 3), keep(1, 2, 3)):
        proxy.evaluate(candidate)
    assert [settings.frozen_layers for settings in distilled] == [2, 0]


def test_low_rank_updates_in_mixed_precision_lower_the_loss_too(tmp_path: Path) -> None:
    settings = structs.replace(SHORT, lora_rank=4, mixed_precision=True, learning_rate=1e-2)
    qualities = make_proxy(tmp_path, "short-distillation", settings=settings).evaluate(CUT).qualities
    assert qualities["short-distillation"].loss < qualities["closed-form"].loss - 1e-3


def test_remembered_states_give_the_same_scores_to_the_bit(tmp_path: Path) -> None:
    live = make_proxy(tmp_path / "live", "short-distillation").evaluate(CUT)
    proxy = make_proxy(tmp_path / "stored", "short-distillation")
    instruments = proxy.sweep.instruments
    teacher_states = store_states(
        instruments.anatomy, instruments.recovery, range(12), directory=tmp_path, identity="x", micro_batch=4
    )
    proxy.sweep.instruments = replace(instruments, teacher_states=teacher_states)
    evaluation = proxy.evaluate(CUT)
    assert evaluation.qualities == live.qualities


# ---- the screen


def test_a_candidate_that_is_not_worth_it_is_not_distilled(tmp_path: Path, distilled: list[DistillSettings]) -> None:
    asked: list[tuple[Candidate, Quality]] = []

    def screen(candidate: Candidate, quality: Quality) -> str | None:
        asked.append((candidate, quality))
        return "hopeless" if candidate == CUT else None

    for name in ("none", "closed-form"):  # it is of short distillation only
        make_proxy(tmp_path, name, screen=screen).evaluate(CUT)
    assert asked == []
    proxy = make_proxy(tmp_path, "short-distillation", settings=STILL, screen=screen)
    skipped, climbed = proxy.evaluate(CUT), proxy.evaluate(keep(0, 1, 3))
    assert asked == [(each.candidate, each.qualities["closed-form"]) for each in (skipped, climbed)]
    assert skipped.skipped_because == "hopeless"
    assert set(skipped.qualities) == {"none", "closed-form"}
    assert skipped.latency == time_candidate(CUT)
    assert climbed.skipped_because is None
    assert "short-distillation" in climbed.qualities
    assert len(distilled) == 1
    again = make_proxy(tmp_path, "short-distillation", screen=lambda candidate, quality: "hopeless")
    found = again.evaluate(climbed.candidate)  # what was distilled before is not screened
    assert found.qualities == climbed.qualities
    assert found.skipped_because is None


# ---- what holds throughout


def test_scoring_leaves_the_teacher_as_it_was_and_repeats_itself(tmp_path: Path) -> None:
    tokens = make_tokens()
    proxy = make_proxy(tmp_path / "one", "short-distillation")
    teacher = proxy.sweep.instruments.teacher
    before = compute_logits(teacher, tokens)
    first = proxy.evaluate(CUT)
    other = make_proxy(tmp_path / "other", "short-distillation")
    other.evaluate(keep(0, 1, 2))
    assert other.evaluate(CUT).qualities == first.qualities
    assert torch.equal(compute_logits(teacher, tokens), before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_a_family_without_closed_form_climbs_past_it(tmp_path: Path) -> None:
    def screen(candidate: Candidate, quality: Quality) -> str | None:
        raise AssertionError

    proxy = make_proxy(tmp_path, "short-distillation", family="gemma3_text", screen=screen)
    assert proxy.sweep.instruments.gains is None
    qualities = proxy.evaluate(CUT).qualities
    assert list(qualities) == ["none", "short-distillation"]
    assert qualities["short-distillation"].loss < qualities["none"].loss
    with pytest.raises(AssertionError):
        make_proxy(tmp_path, "closed-form", family="gemma3_text")


@pytest.mark.parametrize("name", ["none", "closed-form"])
def test_out_of_memory_fewer_windows_go_at_once_and_the_score_is_the_same(name: str, tmp_path: Path) -> None:
    wanted = make_proxy(tmp_path / "wanted", name, settings=STILL).evaluate(CUT)
    proxy = make_proxy(tmp_path / "scarce", name, settings=STILL)
    with allow_windows(proxy, 1 if name == "none" else 2):
        found = proxy.evaluate(CUT)
    assert proxy.sweep.instruments.micro_batch == (1 if name == "none" else 2)
    for name, quality in wanted.qualities.items():
        assert found.qualities[name].loss == pytest.approx(quality.loss, rel=1e-5)


def test_a_candidate_for_which_no_memory_suffices_is_refused_with_the_reason(tmp_path: Path) -> None:
    proxy = make_proxy(tmp_path, "closed-form")
    with allow_windows(proxy, 0), pytest.raises(CandidateError, match=rf"{CUT.key}: out of memory.*allocate memory"):
        proxy.evaluate(CUT)
    assert proxy.evaluate(CUT).qualities["closed-form"].loss > 0


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
