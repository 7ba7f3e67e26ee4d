"""A whole pass within a given time: what fits is chosen from timed parts, by one rule.

Up to a quarter of the time goes to opening, proofs, latency and the dense model. Of the rest half is the search's, half
distillation's, which also has what the search leaves. A candidate takes at most a hundredth of the search's share, so
validation text is halved until it does; models have as many tokens as fill distillation's share, and are fewer where that
would be too few for each. What was told stays as it was told, and counts.
"""

import bisect
import datetime
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from seed import protocols
from seed.config import StudyConfig, known
from seed.console import format_seconds
from seed.cost import Cost, Estimator, Shape
from seed.errors import SeedError
from seed.plans import Protocol, SearchPlan, StreamRecord
from seed.protocols import Original
from seed.reporting.wording import count_things
from seed.speed import Speed
from seed.stats import FEWEST_PAIRS

USUAL_SECONDS = {"cpu": 4 * 3600.0, "cuda": 12 * 3600.0}  # where no time is given and the defaults would take longer
OPENING_SHARE = 0.25
FEWEST_CANDIDATES = 100  # that the search's share is to suffice for
FEWEST_TOKENS = 4096  # of validation text
MOST_CANDIDATES = 1000  # unless told: past these, time is better spent on distillation
FEWEST_STEPS = 100  # of a distillation, unless there is time for less than one such
WANTED_MODELS = 4  # that there are so many steps for each, made smaller for it
MOST_PASSES = 16  # over the recovery text; more would learn it by heart
SHORTEN = (1, 2, 4, 8)  # by how much the timed workload is shortened where a few pairs of it take too long

OF_TEXT = (
    "batch_tokens",
    "calibration_tokens",
    "validation_tokens",
    "test_tokens",
    "prompt_tokens",
    "new_tokens",
    "latency_repeats",
)
OF_WORK = ("trials", "sweep_budget", "frontier_size", "distill_tokens")


def keep_numbers(settings: StudyConfig, plan: SearchPlan) -> StudyConfig:
    """The settings of a study that goes on, with what was chosen when it began where nothing else is told."""
    if plan.time is None:
        return settings
    found = {name: getattr(plan.protocol, name) for name in OF_TEXT}
    found |= {name: getattr(plan, name) for name in OF_WORK} | {"time": plan.time}
    return _settle_rates(_choose(settings, **found))


def fit_opened(settings: StudyConfig, original: Original, *, shape: Shape, speed: Speed) -> StudyConfig:
    """Choose the time where it is to be chosen, and what text there is time for, before any is read."""
    request = protocols.request_text(settings, original.config)
    caps = {
        "recovery": request.recovery_tokens,
        "validation": request.validation_tokens,
        "test": request.test_tokens or 4 * request.validation_tokens,
    }
    streams = {
        name: StreamRecord(source="not read yet", tokens=tokens, documents=0, sha256="")
        for name, tokens in caps.items()
    }
    protocol = protocols.fix_protocol(settings, original, streams)
    estimator = Estimator(protocol=protocol, shape=shape, speed=speed)
    return fit_text(choose_time(settings, estimator), estimator)


def choose_time(settings: StudyConfig, estimator: Estimator) -> StudyConfig:
    """The settings with the usual time of such a device, where none is given and the search would take longer."""
    if settings.time is not None:
        return settings
    plan = estimator.draft_plan(settings, name="study")
    seconds = estimator.estimate_cost(plan, distill=settings.distill).seconds
    usual = USUAL_SECONDS["cuda" if estimator.shape.gpu_bytes else "cpu"]
    return replace(settings, time=usual) if seconds > usual else settings


def fit_text(settings: StudyConfig, estimator: Estimator) -> StudyConfig:
    """Choose how many tokens score and judge, and how long latency is timed. ``estimator``: of what there is by default."""
    if settings.time is None:
        return settings
    protocol, chosen = estimator.protocol, dict[str, Any]()
    if not settings.is_given("latency_repeats") and not protocol.latency_command:
        chosen |= _fit_latency(settings, estimator, seconds=settings.time * OPENING_SHARE / 2)
    share = settings.time * (1 - OPENING_SHARE) * (0.5 if settings.distill else 1)
    num_candidates = max(FEWEST_CANDIDATES, known(settings.trials) if settings.is_given("trials") else 0)
    validation, fewest = protocol.validation_tokens, max(FEWEST_TOKENS, 4 * protocol.window_tokens)
    is_told = settings.is_given("validation_tokens")
    while True:
        calibration = fit_calibration(estimator, validation_tokens=validation, seconds=share / 8)
        stream = msgspec.structs.replace(protocol.streams["validation"], tokens=validation)
        tried = estimator.with_protocol(
            calibration_tokens=calibration, streams=protocol.streams | {"validation": stream}
        )
        if tried.price_score() <= share / num_candidates or validation <= fewest or is_told:
            break
        validation = max(fewest, validation // 2)
    if settings.distill:  # smaller steps, where there is time for few
        tokens = share / estimator.price_token()
        least = protocol.window_tokens
        chosen["batch_tokens"] = max(
            least, min(protocol.batch_tokens, int(tokens / (WANTED_MODELS * FEWEST_STEPS)) // least * least)
        )
    chosen["calibration_tokens"] = calibration
    if validation < protocol.validation_tokens:
        test = min(protocol.test_tokens or math.inf, 2 * validation)
        chosen |= {"validation_tokens": validation, "test_tokens": test}
    return _choose(settings, **chosen)


def fit_calibration(estimator: Estimator, *, validation_tokens: int, seconds: float) -> int:
    """Tokens that closed form is fitted on: as many as score; where all candidates share its maps, what some seconds allow."""
    protocol = estimator.protocol
    tokens = protocol.calibration_tokens
    if not estimator.shape.shares_maps:
        return min(tokens, validation_tokens)
    while tokens // 2 >= max(FEWEST_TOKENS, 4 * protocol.window_tokens):
        if estimator.with_protocol(calibration_tokens=tokens).price_maps() <= seconds:
            break
        tokens //= 2
    return tokens


def _fit_latency(settings: StudyConfig, estimator: Estimator, *, seconds: float) -> dict[str, int]:
    """A shorter workload and so many pairs of it that all depths are timed within some seconds; nothing where they are."""
    protocol = estimator.protocol
    for part in SHORTEN:
        prompt, new = max(1, protocol.prompt_tokens // part), max(1, protocol.new_tokens // part)
        shorter = _choose(settings, prompt_tokens=prompt, new_tokens=new)
        workload = {name: known(getattr(shorter, name)) for name in ("prompt_tokens", "new_tokens")}
        run = estimator.with_protocol(**workload).price_run()
        pairs = seconds / (2 * len(protocol.space.more_dropped) * run) - 1
        if pairs >= FEWEST_PAIRS:
            break
    if part == 1 and estimator.price_latency() <= seconds:
        return {}
    return {**workload, "latency_repeats": max(FEWEST_PAIRS, int(pairs))}


def fit_work(settings: StudyConfig, estimator: Estimator, *, spent: float, num_workers: int = 1) -> StudyConfig:
    """Choose how many candidates are scored, how many models distilled, and for how long. ``spent``: seconds, on opening.

    Raises:
        SeedError: what is told takes longer than the time that is given.
    """
    if settings.time is None:
        return settings
    is_told = {name: settings.is_given(name) for name in OF_WORK}
    protocol, score = estimator.protocol, estimator.price_score() / num_workers

    def price_models(count: int, tokens: int) -> float:
        """Seconds of distilling so many models for so many tokens each."""
        students = count * settings.replicas
        if settings.width_baseline:
            students += min(count, len(protocol.space.more_dropped)) * settings.replicas
        rounds, is_tuned = math.ceil(students / num_workers), count > 1 and not settings.learning_rate
        return estimator.price_distillation(tokens=tokens, num_students=rounds, is_tuned=is_tuned)

    told_search = known(settings.trials) * score if is_told["trials"] else 0.0
    told_models = settings.frontier_size if is_told["frontier_size"] else 1
    is_long = settings.distill and is_told["distill_tokens"]
    told_distillation = price_models(told_models, known(settings.distill_tokens)) if is_long else 0.0
    _refuse_too_much(settings, told_search, told_distillation)

    opening = spent + estimator.price_latency() + estimator.price_dense()
    left = max(settings.time - opening, settings.time / 2)
    search = told_search or min(left / 2, max(left / 4, left - told_distillation))
    search = search if settings.distill else left
    settings = _fit_search(settings, estimator, seconds=search, score=score, num_workers=num_workers)
    if not settings.distill:
        return settings
    plan = estimator.draft_plan(settings, name="study")
    rest = max(left / 4, left - estimator.price_search(plan) / num_workers - estimator.price_baselines(plan))

    most = max(1, min(settings.frontier_size, plan.trials))
    least_tokens = FEWEST_STEPS * protocol.step_tokens
    if is_told["distill_tokens"]:
        tokens = known(settings.distill_tokens)
        count = next((count for count in range(most, 1, -1) if price_models(count, tokens) <= rest), 1)
    else:
        for count in range(most, 0, -1):
            tokens = _fill(functools.partial(price_models, count), rest, protocol)
            if tokens >= least_tokens or is_told["frontier_size"]:
                break
    return _settle_rates(_choose(settings, frontier_size=count, distill_tokens=tokens))


def _fit_search(
    settings: StudyConfig, estimator: Estimator, *, seconds: float, score: float, num_workers: int
) -> StudyConfig:
    """Choose how many candidates are scored within some seconds, and whether all are swept."""
    protocol = estimator.protocol
    is_short = protocol.proxy == "short-distillation"  # a sweep only leads it
    budget = seconds * num_workers * (0.25 if is_short else 1)
    swept = estimator.price_sweep()
    if is_short and swept <= budget:
        seconds -= swept / num_workers
    trials = max(1, min(MOST_CANDIDATES, int(seconds / score)))
    if not is_short and estimator.shape.shares_maps:
        seconds = max(seconds / 2, seconds - estimator.price_maps(trials=trials))
        trials = max(1, min(trials, int(seconds / score)))
    tried = _choose(settings, sweep_budget=budget, trials=trials)
    left = seconds - estimator.price_baselines(estimator.draft_plan(tried, name="study"))
    fewer = max(1, min(trials, len(protocol.space.droppable_layers) - 1))  # beside which nothing else is scored
    return _choose(tried, trials=max(fewer, min(trials, int(left / score))))


def _fill(price: Callable[[int], float], seconds: float, protocol: Protocol) -> int:
    """The most tokens, as whole steps, that take no longer than some seconds; at least one step."""
    step, most = protocol.step_tokens, MOST_PASSES * protocol.streams["recovery"].tokens
    steps = range(1, max(2, most // step + 1))
    return step * max(1, bisect.bisect_right(steps, seconds, key=lambda count: price(count * step)))


def _refuse_too_much(settings: StudyConfig, search: float, distillation: float) -> None:
    """Raise SeedError where what is told takes longer than the time that is told."""
    seconds = known(settings.time)
    if not settings.is_given("time") or search + distillation <= seconds:
        return
    told = [f"--trials {settings.trials}"] * (search > 0) + [f"--distill-tokens {settings.distill_tokens}"] * (
        distillation > 0
    )
    raise SeedError(
        f"--time {format_seconds(seconds)}: {' and '.join(told)} alone {'takes' if len(told) == 1 else 'take'} about "
        f"{format_seconds(search + distillation)} here. Give more time, or leave {'it' if len(told) == 1 else 'them'} out, "
        "and what fits is chosen."
    )


def _choose(settings: StudyConfig, **found: Any) -> StudyConfig:
    """The settings with these where nothing is told."""
    return replace(settings, **{name: value for name, value in found.items() if not settings.is_given(name)})


def _settle_rates(settings: StudyConfig) -> StudyConfig:
    """The settings with one learning rate where one model is distilled: to tune it takes a third of that model's time."""
    rates = sorted(known(settings.learning_rates))
    if settings.frontier_size > 1:
        return settings
    return _choose(settings, learning_rates=(rates[len(rates) // 2],))


def end_search(settings: StudyConfig, planned: Cost) -> float:
    """How much of the time may be spent when the search ends: what the rest leaves, or its share if all is slower now."""
    seconds = known(settings.time)
    least = seconds * (1 - OPENING_SHARE) / (4 if settings.is_given("distill_tokens") else 2)
    return max(least, seconds - planned.distill_seconds - planned.baselines_seconds)


def describe_time(
    settings: StudyConfig, estimator: Estimator, plan: SearchPlan, planned: Cost, *, spent: float
) -> list[str]:
    """Say in lines what is done how long, and when it will be done; ``spent``: seconds so far."""
    if plan.time is None:
        return []
    protocol, opening = estimator.protocol, spent + estimator.price_dense()
    left = max(0.0, min(plan.time, opening + planned.seconds) - spent)
    done = datetime.datetime.now().astimezone() + datetime.timedelta(seconds=left)
    usual = "" if settings.is_given("time") else ", the usual here (--time says otherwise)"
    pairs = f"{protocol.latency_repeats} pairs of runs each" if protocol.latency_repeats else "until it is sure"
    parts = [
        ("opened, proofs, dense model", opening, f"{protocol.streams['test'].tokens:,} test tokens"),
        ("latency", planned.latency_seconds, f"{count_things(len(protocol.space.more_dropped), 'depth')}, {pairs}"),
        (
            "search",
            planned.search_seconds + planned.baselines_seconds,
            f"{count_things(plan.trials, 'candidate')} on {estimator.validation_tokens:,} validation and "
            f"{protocol.calibration_tokens:,} calibration tokens",
        ),
    ]
    if planned.num_finals:
        what = f"{count_things(planned.num_finals, 'model')} for {protocol.describe_training(plan.distill_tokens)} each"
        tuned = "tuned" if settings.tunes_rate else "not tuned"
        parts.append(("distillation", planned.distill_seconds, f"{what}, learning rate {tuned}"))
    return [
        f"time: {format_seconds(plan.time)}{usual}, of which {format_seconds(spent)} are spent; done about {done:%H:%M} "
        f"({done:%Y-%m-%d})",
        *(f"  {name:<28} {format_seconds(seconds):>14}  {what}" for name, seconds, what in parts),
    ]
