"""A study's answer in sentences: the best of each depth, which to ship, what the search added, and studies beside one another.

Plain text, for terminal, page and note alike; what is said is chosen in ``results``.
"""

from collections.abc import Mapping, Sequence

from seed.evidence import Baseline, BaselinePick, Equivalence, SearchGain, StudyRecord
from seed.records import Frontier
from seed.reporting.wording import (
    MARGIN_PERCENT,
    count_things,
    describe_size,
    describe_speed,
    format_change,
    format_count,
    format_interval,
    format_number,
    format_ppl_ratio,
    list_layers,
    name_depth,
    name_drop,
    name_rung,
    name_width,
)
from seed.results import Model, Recommendation, Standing, StudyResult

# of a model beside the best of its depth, in the best one's words
VERDICTS = {
    "equivalent": f"equivalent within {MARGIN_PERCENT} to",
    "cannot tell": "tied with",
    "higher": "better than",
    "lower": "worse than",
}


def name_model(model: Model) -> str:
    """Return which layers are gone, or how all are cut: ``1, 7`` or ``none; MLP 304, 3 heads``."""
    return list_layers(model.candidate.dropped_layers) if model.width is None else name_width(model.width)


def name_best(model: Model) -> str:
    """Return ``10 of 12 layers (without 1, 6)``."""
    return f"{name_depth(model.candidate)} (without {list_layers(model.candidate.dropped_layers)})"


def say_ratio(model: Model, *, places: int = 3) -> str:
    """Return the PPL ratio: the mean of replicas with its interval, or that of the only one with its standard error."""
    if model.num_distilled <= 1:
        return format_ppl_ratio(model.quality, places=places)
    return f"{format_interval(model.ppl_ratio, places=places)}, mean of {model.num_distilled}"


def say_quality(model: Model) -> str:
    """Return ``test PPL ratio 1.015 ± 0.002``."""
    return f"{'test' if model.is_distilled else 'validation'} PPL ratio {say_ratio(model)}"


# ---- one study


def say_introduction(result: StudyResult) -> str:
    """Return what the sentences on the best models speak of."""
    if result.distilled:
        return f"{count_things(len(result.distilled), 'model')} distilled in full. The best of each depth, chosen on validation text:"
    if result.best:
        return (
            f"Nothing was distilled. By the proxy ({name_rung(result.record.frontier.proxy)}, validation text), "
            "the best candidate of each depth is:"
        )
    return "No candidate was scored completely, so there is no frontier."


def say_best(model: Model, result: StudyResult) -> str:
    """Return a depth's best model in a sentence: size, speed, perplexity, and which models of its depth are as good."""
    size = describe_size(model.size.num_params, dense_num_params=result.record.dense.size.num_params)
    has_gained = model.unrecovered is not None and model.unrecovered != model.quality.ppl_ratio
    unrecovered = f" (without recovery {format_number(model.unrecovered or 0.0, places=2)})" if has_gained else ""
    parts = [size, describe_speed(model.latency), f"{say_quality(model)}{unrecovered}"]
    parts += [say_equivalence(found, result) for found in result.record.equivalences if found.other == model.key]
    if model.num_tied:
        verb = "was" if model.num_tied == 1 else "were"
        apart = f" that {verb} not distilled" if model.is_distilled else ""
        parts.append(f"by the proxy tied with {count_things(model.num_tied, 'other')}{apart}")
    return f"{name_best(model)}: {', '.join(parts)}."


def say_equivalence(found: Equivalence, result: StudyResult) -> str:
    """Return how the best model of a depth, ``found.other``, lies to another distilled one, ``found.one``."""
    names = {model.key: name_model(model) for model in result.distilled}
    rival = f"the one without {names[found.one]}"
    if found.excess.value is None or found.excess.low is None:
        return f"not comparable with {rival}"
    return f"{VERDICTS[found.verdict]} {rival} (its PPL: {format_change(found.excess, places=2)})"


def say_recommendation(found: Recommendation, result: StudyResult) -> str:
    """Return which model to ship within a margin, and how sure that is."""
    limit = f"{found.margin}\u00a0%"
    if found.chosen is None:
        why = say_none(found, result)
        return f"Within {limit} PPL: none{f'; {why}' if why else ''}."
    chosen = found.chosen
    return f"Fastest within {limit} PPL: {name_best(chosen)}, {describe_speed(chosen.latency)}, {say_quality(chosen)}; {say_certainty(found)}."


def say_none(found: Recommendation, result: StudyResult) -> str:
    """Return why no model is recommended: none is faster, or which loses the least; nothing where there is none."""
    if found.slower is not None:
        best = found.slower
        return (
            f"the best that stays within, {name_best(best)}, {say_quality(best)}, was not measured faster than the dense "
            f"model: {describe_speed(best.latency)}"
        )
    known = [(one.ppl_ratio.value, one) for one in result.best if one.ppl_ratio.value is not None]
    if not known:
        return ""
    _, nearest = min(known, key=lambda pair: pair[0])
    return f"the nearest is {name_best(nearest)}, {say_quality(nearest)}"


def say_certainty(found: Recommendation, *, names_margin: bool = False) -> str:
    """Return whether the 95 % interval of a recommended model stays within the margin."""
    assert found.chosen is not None
    ratio = found.chosen.ppl_ratio
    if ratio.low is None or ratio.high is None:
        return "how sure that is cannot be told: too few documents for an interval"
    interval = f"95\u00a0% interval {format_number(ratio.low)} to {format_number(ratio.high)}"
    return f"{interval}, {say_within(found, names_margin=names_margin)}"


def say_within(found: Recommendation, *, names_margin: bool = False) -> str:
    """Return whether the whole 95 % interval of a recommended model stays within the margin."""
    margin = f" {found.margin}\u00a0%" if names_margin else ""
    return f"all of it within{margin}" if found.is_sure else f"some of it beyond{margin}"


def say_disturbance(result: StudyResult) -> str:
    """Return by what latency was disturbed while it was measured; nothing where the machine was quiet."""
    told = [f"{structure}: {disturbance}" for structure, disturbance in result.disturbances.items()]
    if not told:
        return ""
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    return (
        f"The machine was busy while latency was measured ({'; '.join(told[:3])}{more}): at another time ratios may differ by "
        "more than their intervals."
    )


def say_baselines(result: StudyResult) -> str:
    """Return what became of the same sizes by cutting all layers evenly in width; nothing where that was not tried."""
    dense = result.record.dense.size.num_params
    told = [
        f"{describe_size(one.size.num_params, dense_num_params=dense)}, {describe_speed(one.latency)}, {say_quality(one)}"
        for one in result.baselines
    ]
    return f"For comparison, all layers kept and cut evenly in width: {'; '.join(told)}." if told else ""


def say_unhelped(result: StudyResult) -> str:
    """Return which distilled models are no better on test text than the same layers without recovery; nothing: all are."""
    unhelped = [
        name_model(one)
        for one in result.distilled
        if one.unrecovered is not None and one.quality.ppl_ratio >= one.unrecovered
    ]
    if not unhelped:
        return ""
    return f"Recovery did not help on test text without {'; '.join(unhelped)}. Give more --distill-tokens, or recovery text of its kind."


# ---- what the search added


def say_solver(gain: SearchGain, frontier: Frontier) -> str:
    """Return how candidates were chosen, and how many of how many."""
    return f"{frontier.num_scored:,} of {count_things(frontier.space_size, 'candidate')} scored, {gain.solver}."


def say_baseline(baseline: Baseline, gain: SearchGain) -> str:
    """Return what a baseline would have reached at each depth, and at which share of the search's cost."""
    share = f" ({baseline.cost / gain.cost:.2f} × the search's cost)" if gain.cost and baseline.is_whole else ""
    told = ", ".join(say_pick(pick) for pick in baseline.picks)
    if baseline.picks and all(pick.candidate == pick.best for pick in baseline.picks):
        told = "the same set at every depth that it reached" if len(baseline.picks) > 1 else "the same set"
    rest = (
        ""
        if baseline.is_whole
        else f"{'deeper ' if baseline.picks else ''}it needs scores that the search did not make (python -m seed.experiment compare)"
    )
    return f"{baseline.title}{share}: {'; '.join(filter(None, (told, rest)))}"


def say_pick(pick: BaselinePick) -> str:
    """Return how a baseline's pick lies to the search's: ``−2: PPL 1.3 ± 0.2 % higher (5, 6)``."""
    drop = name_drop(len(pick.candidate.dropped_layers))
    if pick.candidate == pick.best:
        return f"{drop}: the same set"
    layers = list_layers(pick.candidate.dropped_layers)
    if pick.ppl_ratio is None or pick.standard_error is None:
        return f"{drop}: not scored ({layers})"
    excess, error = (format_number(100 * value, places=1) for value in (abs(pick.ppl_ratio - 1), pick.standard_error))
    return f"{drop}: PPL {excess} ± {error}\u00a0% {'higher' if pick.ppl_ratio >= 1 else 'lower'} ({layers})"


# ---- several studies


def say_leader(studies: Mapping[str, StudyResult], standings: Sequence[Standing], *, margin: int) -> str:
    """Return whose model is the fastest within a margin."""
    if not standings:
        return f"Fastest within {margin}\u00a0% PPL: none in any of them."
    study, best = standings[0].study, standings[0].model
    size = describe_size(best.size.num_params, dense_num_params=studies[study].record.dense.size.num_params)
    return (
        f"Fastest within {margin}\u00a0% PPL: {study}, {name_best(best)}, {describe_speed(best.latency)}, "
        f"{size}, {say_quality(best)}, 95\u00a0% interval: {say_within(standings[0].recommendation)}."
    )


def say_others(studies: Mapping[str, StudyResult], standings: Sequence[Standing]) -> str:
    """Return how the models of the other studies stand beside the leader; nothing where none has one."""
    if not standings:
        return ""
    beside = [say_standing(one, standings[0].model) for one in standings[1:]]
    missing = [study for study in studies if study not in {one.study for one in standings}]
    beside += [f"{', '.join(missing)}: none"] if missing else []
    return f"Beside it {'; '.join(beside)}."


def say_standing(standing: Standing, best: Model) -> str:
    """Return a model beside the leading one: which layers, how far behind, and its perplexity."""
    one, behind = standing.model, standing.behind
    lead = format_change(behind, places=1)
    if behind.low is None:
        lead += ", timed too few times to tell"
    elif standing.is_level:
        lead += ", no measurable difference"
    layers = "the same layers" if one.candidate == best.candidate else name_best(one)
    return f"{standing.study}: {layers}, latency ratio {lead}, {say_quality(one)}"


def say_subject(record: StudyRecord) -> str:
    """Return what was searched, how much of it, and where, in a line."""
    model, dense = record.plan.identity.get("model"), record.dense
    named = f"{model}: " if isinstance(model, str) else ""
    state = " · the search goes on, and all this may change" if record.is_running else ""
    return (
        f"{named}{record.space.num_layers} layers, {format_count(dense.size.num_params)} parameters, test PPL "
        f"{format_number(dense.test.perplexity, places=2)} · {record.frontier.num_scored:,} of {record.frontier.space_size:,} "
        f"candidates scored, {len(record.distilled)} distilled · {dense.latency.device}{state}"
    )
