"""What a search added over simpler ways to choose, in words."""

from seed.findings import Rival, RivalPick, SearchGain
from seed.records import Frontier
from seed.reporting.wording import count_things, format_number, list_layers, name_drop


def say_solver(gain: SearchGain, frontier: Frontier) -> str:
    """Return how candidates were chosen, and how many of how many."""
    return f"{frontier.num_scored:,} of {count_things(frontier.space_size, 'candidate')} scored, {gain.solver}."


def say_rival(rival: Rival, gain: SearchGain) -> str:
    """Return what a rival would have reached at each depth, and at which share of the search's cost."""
    share = f" ({rival.cost / gain.cost:.2f} × the search's cost)" if gain.cost and rival.is_whole else ""
    told = ", ".join(say_pick(pick) for pick in rival.picks)
    if rival.picks and all(pick.candidate == pick.best for pick in rival.picks):
        told = "the same set at every depth that it reached" if len(rival.picks) > 1 else "the same set"
    rest = (
        ""
        if rival.is_whole
        else f"{'deeper ' if rival.picks else ''}it needs scores that the search did not make (python -m seed.experiment compare)"
    )
    return f"{rival.title}{share}: {'; '.join(filter(None, (told, rest)))}"


def say_pick(pick: RivalPick) -> str:
    """Return how a rival's pick lies to the search's: ``−2: PPL 1.3 ± 0.2 % higher (5, 6)``."""
    drop = name_drop(len(pick.candidate.dropped_layers))
    if pick.candidate == pick.best:
        return f"{drop}: the same set"
    layers = list_layers(pick.candidate.dropped_layers)
    if pick.ppl_ratio is None or pick.standard_error is None:
        return f"{drop}: not scored ({layers})"
    excess, error = (format_number(100 * value, places=1) for value in (abs(pick.ppl_ratio - 1), pick.standard_error))
    return f"{drop}: PPL {excess} ± {error}\u00a0% {'higher' if pick.ppl_ratio >= 1 else 'lower'} ({layers})"
