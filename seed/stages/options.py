"""Options of commands: reading what was typed, and spelling a command that says the same."""

import argparse
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

N = TypeVar("N", int, float)


def parse_bytes(text: str) -> float:
    """``6GB``, ``800MB`` or a plain number of bytes; powers of ten.

    Raises:
        ValueError: neither.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kKMGT]?)[bB]?\s*", text)
    if not match:
        raise ValueError(text)
    return float(match[1]) * {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[2]]


def parse_seconds(text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``2h`` in seconds.

    Raises:
        ValueError: none of these.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smh]?)\s*", text)
    if not match:
        raise ValueError(text)
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def positive_int(text: str) -> int:
    """A whole number above 0, for argparse."""
    if (value := _read_number(text, int)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def whole_number(text: str) -> int:
    """A whole number, 0 or above, that random seeds can be, for argparse."""
    if not 0 <= (value := _read_number(text, int)) < 2**31:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more, and below 2,147,483,648")
    return value


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers as ``0,1,4-11``, in rising order, for argparse."""
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", part)
        if not match:
            raise argparse.ArgumentTypeError(f"{text!r} names no layers; write 0-3,6,8-21")
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if layers != sorted(set(layers)) or not layers:
        raise argparse.ArgumentTypeError(f"{text!r} is not in rising order, each layer once; write 0-3,6,8-21")
    return tuple(layers)


def positive_float(text: str) -> float:
    """A finite number above 0, for argparse."""
    value = _read_number(text, float)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def _read_number(text: str, kind: type[N]) -> N:
    """What was typed as a number; argparse by itself would name the function that reads it."""
    try:
        return kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from error


def add_study(parser: argparse.ArgumentParser) -> None:
    """The study that a command works on."""
    parser.add_argument(
        "path", metavar="STUDY", type=Path, help="the folder of a finished search, such as studies/demo"
    )


def add_trainings(parser: argparse.ArgumentParser, *, distill_tokens: str, rng_seeds: str, learning_rate: str) -> None:
    """How a command trains, with what each option means to it, and on which device."""
    parser.add_argument("--distill-tokens", type=positive_int, metavar="N", help=distill_tokens)
    parser.add_argument("--rng-seeds", type=whole_number, nargs="+", metavar="N", help=rng_seeds)
    parser.add_argument("--learning-rate", type=positive_float, metavar="R", help=learning_rate)
    parser.add_argument("--device", help="default: as chosen for the search")


def add_trust(parser: argparse.ArgumentParser, *, code: bool = True) -> None:
    """The user's word on what somebody else's study would open. The same words in every command that has it."""
    parser.add_argument(
        "--trust-study",
        action="store_true",
        help="open what the study's plan names, though it was not planned by you on this machine: "
        + ("model, texts, commands, storage" if code else "its storage"),
    )
    if code:
        parser.add_argument(
            "--trust-remote-code", action="store_true", help="run code that the study's model brings along"
        )


def add_json(parser: argparse._ActionsContainer) -> None:
    """Whether the result is for a script. The same words in every command that has it."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one line of JSON on standard output; all else goes to standard error",
    )


def read_words(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What was typed, by option; several values of one as a tuple."""
    given: dict[str, Any] = vars(parser.parse_args())
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def spell_command(module: str, options: Mapping[str, Any], *words: str) -> str:
    """The command of a module with these words and options; options that are None are left out.

    Example:
        >>> spell_command("seed.compare", {"cost": 2e6, "rng_seeds": (0, 1), "device": None}, "studies/demo")
        'python -m seed.compare studies/demo --cost 2000000.0 --rng-seeds 0 1'
    """
    found = ["python", "-m", module, *words]
    for name, value in options.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                pass
            case True:
                found.append(f"--{flag}")
            case False:
                found.append(f"--no-{flag}")
            case tuple():
                found += [f"--{flag}", *map(str, value)]
            case _:
                found += [f"--{flag}", str(value)]
    return shlex.join(found)
