"""Options of commands: reading what was typed, and spelling a command that says the same.

Numbers are read as people write them. What is wrong is one line, with exit code 2.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from seed.plain import is_utf8, spell_controls

NUMBER = re.compile(
    r"(?P<digits>[+-]?(?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*|(?=\.\d))(?:\.\d*)?(?:e[+-]?\d{1,3})?)\s*(?P<unit>[a-z]*)\s*",
    re.I,
)
NO_UNITS = {"": 1}
COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
BYTE_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
SECOND_UNITS = {"": 1} | {
    name: seconds
    for names, seconds in (
        ("s sec secs second seconds", 1),
        ("m min mins minute minutes", 60),
        ("h hr hrs hour hours", 3600),
        ("d day days", 86400),
    )
    for name in names.split()
}
MOST_WHOLE = 2**63 - 1
RNG_SEEDS = range(2**31)  # what every library takes


class CommandParser(argparse.ArgumentParser):
    """A command line that answers a mistake in one line, and takes no value that is empty or no text."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """What was typed, by option."""
        words = sys.argv[1:] if args is None else list(args)
        place = "what was typed"
        for word in words:
            name, equals, value = word.partition("=")
            if is_option := word.startswith("--"):
                place = name
            else:
                value = word
            if not is_utf8(word):
                self.error(f"{place} {value or word}: is not UTF-8, as all that Seed writes down is. Rename it")
            if not value.strip() and (equals or not is_option):
                self.error(f"{place}: is empty. Give a value, or leave it out")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and where all options are."""
        said = spell_controls(message.removeprefix("argument "))
        self.exit(2, f"error: {said}. All options: {self.prog} --help\n")


def parse_count(text: str) -> int:
    """``1000``, ``1_000``, ``1,000``, ``1e3``, ``1k``, ``45M`` or ``1.5B``: a whole number.

    Raises:
        ValueError: none of these.
    """
    value = _read_quantity(text, COUNT_UNITS)
    if value != int(value):
        raise ValueError(text)
    return int(value)


def parse_bytes(text: str) -> float:
    """``6GB``, ``1.8 GB``, ``800M`` or a plain number of bytes in powers of ten; ``6 GiB`` in powers of two.

    Raises:
        ValueError: none of these.
    """
    return _require_unsigned(_read_quantity(text, BYTE_UNITS), text)


def parse_seconds(text: str) -> float:
    """``90``, ``90s``, ``10 min``, ``2h``, ``1 h 30 min`` or ``2 days`` in seconds.

    Raises:
        ValueError: none of these.
    """
    parts = [match[0] for match in NUMBER.finditer(text.strip())]
    if len(parts) < 2:
        return _require_unsigned(_read_quantity(text, SECOND_UNITS), text)
    units = {name: seconds for name, seconds in SECOND_UNITS.items() if name}  # 1 h 30 could be minutes or seconds
    if "".join(parts) != text.strip():
        raise ValueError(text)
    return sum(_require_unsigned(_read_quantity(part, units), text) for part in parts)


def _read_quantity(text: str, units: Mapping[str, int]) -> Decimal:
    match = NUMBER.fullmatch(text.strip())
    if not match or match["unit"].lower() not in units:
        raise ValueError(text)
    return Decimal(re.sub("[,_]", "", match["digits"])) * units[match["unit"].lower()]


def _require_unsigned(value: Decimal, text: str) -> float:
    if value < 0:
        raise ValueError(text)
    return float(value)


def size_in_bytes(text: str) -> float:
    """A size, for argparse."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write 6GB, 1.8 GiB, 800MB or a number of bytes"
        ) from error


def time_in_seconds(text: str) -> float:
    """A time, for argparse."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write 90s, 10 min, 2h or a number of seconds"
        ) from error


def any_int(text: str) -> int:
    """A whole number, for argparse."""
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; write 20000, 20,000, 20k or 2e4") from error


def positive_int(text: str) -> int:
    """A whole number above 0, for argparse."""
    if (value := any_int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    if value > MOST_WHOLE:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST_WHOLE:,}")
    return value


def whole_number(text: str) -> int:
    """A whole number, 0 or above, that random seeds can be, for argparse."""
    if (value := any_int(text)) not in RNG_SEEDS:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more, and below {RNG_SEEDS.stop:,}")
    return value


def any_float(text: str) -> float:
    """A number, for argparse."""
    try:
        return float(_read_quantity(text, NO_UNITS))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write 0.5 or 1e-4") from error


def positive_float(text: str) -> float:
    """A number above 0, for argparse."""
    if not (value := any_float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
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


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The user's word on code, which no study's folder gives. The same words in every command that has it."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the study's model brings along")


def add_storage(parser: argparse.ArgumentParser) -> None:
    """The database that shows a study, which no study's folder names. The same words in every command that has it."""
    parser.add_argument(
        "--storage", metavar="URL", help="the database that shows the study, where its search was given one"
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
        >>> spell_command("seed.experiment", {"cost": 2e6, "rng_seeds": (0, 1), "device": None}, "compare", "studies/demo")
        'python -m seed.experiment compare studies/demo --cost 2000000.0 --rng-seeds 0 1'
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
