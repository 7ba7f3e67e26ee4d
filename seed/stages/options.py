"""Options that commands about finished searches share."""

import argparse
from typing import Any

from seed.cli import COUNT, PATH, POSITIVE, TEXT, WHOLE, CommandParser, spell_command

__all__ = [
    "CommandParser",
    "add_study",
    "add_trainings",
    "add_trust",
    "positive_float",
    "positive_int",
    "read_words",
    "spell_command",
    "whole_number",
]
positive_int, positive_float, whole_number = COUNT, POSITIVE, WHOLE


def add_study(parser: argparse.ArgumentParser) -> None:
    """The study that a command works on."""
    parser.add_argument(
        "path", metavar="STUDY", type=PATH, help="the folder of a finished search, such as studies/demo"
    )


def add_trainings(parser: argparse.ArgumentParser, *, distill_tokens: str, rng_seeds: str, learning_rate: str) -> None:
    """How a command trains, with what each option means to it, and on which device."""
    parser.add_argument("--distill-tokens", type=COUNT, metavar="N", help=distill_tokens)
    parser.add_argument("--rng-seeds", type=WHOLE, nargs="+", metavar="N", help=rng_seeds)
    parser.add_argument("--learning-rate", type=POSITIVE, metavar="R", help=learning_rate)
    parser.add_argument("--device", type=TEXT, help="default: as chosen for the search")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The user's word on code, which no study's folder gives. The same words in every command that has it."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the study's model brings along")


def read_words(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What was typed, by option; several values of one as a tuple."""
    given: dict[str, Any] = vars(parser.parse_args())
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
