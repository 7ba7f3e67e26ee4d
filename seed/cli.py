"""Command lines made from records: an option is declared once, as a field, and numbers are read as people write them.

A mistake is one line, with exit code 2.
"""

import argparse
import inspect
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from seed.errors import SeedError
from seed.untrusted import is_utf8, spell_controls

NUMBER = re.compile(
    r"(?P<digits>[+-]?(?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*|(?=\.\d))(?:\.\d*)?(?:e[+-]?\d{1,3})?)\s*(?P<unit>[a-z]*)\s*",
    re.I,
)
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
HELP_WIDTH, HELP_START = 110, 30  # columns: an option is one line
Value = TypeVar("Value")


# Readers of text raise ValueError where it is no such thing.


def parse_count(text: str) -> int:
    """``1000``, ``1_000``, ``1,000``, ``1e3``, ``1k``, ``45M`` or ``1.5B``: a whole number."""
    value = _read_quantity(text, COUNT_UNITS)
    if value != int(value):
        raise ValueError(text)
    return int(value)


def parse_seconds(text: str) -> float:
    """``90``, ``90s``, ``10 min``, ``2h``, ``1 h 30 min`` or ``2 days`` in seconds."""
    parts = [match[0] for match in NUMBER.finditer(text.strip())]
    if len(parts) < 2:
        return float(_read_quantity(text, SECOND_UNITS))
    units = {name: seconds for name, seconds in SECOND_UNITS.items() if name}  # 1 h 30 could be minutes or seconds
    if "".join(parts) != text.strip():
        raise ValueError(text)
    return float(sum(_read_quantity(part, units) for part in parts))


def spell_seconds(seconds: float) -> str:
    """A time as people type it.

    Example:
        >>> spell_seconds(2700), spell_seconds(10800), spell_seconds(90.5)
        ('45m', '3h', '90.5s')
    """
    for unit, name in ((3600, "h"), (60, "m"), (1, "s")):
        if seconds and seconds % unit == 0:
            return f"{seconds // unit:.0f}{name}"
    return f"{seconds}s"


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers as ``0,1,4-11``."""
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", part)
        if not match:
            raise ValueError(text)
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(layers)


def parse_path(text: str) -> Path:
    """A path; of empty text none, which would be the current directory."""
    if not text.strip():
        raise ValueError(text)
    return Path(text)


def _read_quantity(text: str, units: Mapping[str, int]) -> Decimal:
    match = NUMBER.fullmatch(text.strip())
    if not match or match["unit"].lower() not in units:
        raise ValueError(text)
    return Decimal(re.sub("[,_]", "", match["digits"])) * units[match["unit"].lower()]


@dataclass(frozen=True)
class Kind:
    """What an option takes: how text becomes its value, which values are allowed, and both in words."""

    parse: Callable[[str], Any]
    allows: Callable[[Any], bool]
    wanted: str
    metavar: str | None = None

    def read(self, given: Any) -> Any:
        """Return the value that was given, itself or as text.

        Raises:
            ValueError: it is not allowed; says what is wanted.
        """
        try:
            value = self.parse(given) if isinstance(given, str) else given
            if self.allows(value):
                return value
        except (ValueError, TypeError):
            pass
        raise ValueError(f"wanted {self.wanted}")

    def __call__(self, text: str) -> Any:
        """Read text, for argparse."""
        try:
            return self.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def is_number(value: Any) -> bool:
    """Is it a finite number, and no truth value?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Is it a whole number, and no truth value?"""
    return isinstance(value, int) and not isinstance(value, bool)


def choose_from(names: Collection[str]) -> Kind:
    """One of these names."""
    return Kind(str, lambda value: value in names, f"one of {', '.join(names)}", "NAME")


COUNT = Kind(
    parse_count,
    lambda value: is_whole(value) and 1 <= value < 2**63,
    "a whole number from 1, such as 20000, 20,000, 20k or 2e4",
    "N",
)
# up to what every library takes
WHOLE = Kind(
    parse_count, lambda value: is_whole(value) and 0 <= value < 2**31, "a whole number from 0, below 2^31", "N"
)
POSITIVE = Kind(
    lambda text: float(_read_quantity(text, {"": 1})),
    lambda value: is_number(value) and value > 0,
    "a number above 0, such as 0.5 or 1e-4",
    "R",
)
SHARE = replace(POSITIVE, allows=lambda value: is_number(value) and 0 <= value <= 1, wanted="a share, from 0 to 1")
# in powers of ten, or of two: GiB
BYTES = Kind(
    lambda text: float(_read_quantity(text, BYTE_UNITS)),
    POSITIVE.allows,
    "a size, such as 6GB, 1.8 GiB, 800MB or bytes",
    "SIZE",
)
SECONDS = Kind(
    parse_seconds, lambda value: is_number(value) and value >= 0, "a time, such as 90s, 10 min, 2h or seconds", "TIME"
)
LAYERS = Kind(
    parse_layers,
    lambda value: bool(value) and all(map(is_whole, value)) and list(value) == sorted(set(value)),
    "layers in rising order, each once, such as 0-3,6,8-21",
    "LAYERS",
)
NAMES = Kind(
    lambda text: tuple(filter(None, map(str.strip, text.split(",")))),
    bool,
    "names, such as arc_easy,hellaswag",
    "NAMES",
)
SWITCH = Kind(str, lambda value: isinstance(value, bool), "true or false")
TEXT = Kind(
    str, lambda value: isinstance(value, str) and bool(value.strip()) and is_utf8(value), "text in UTF-8, not empty"
)
PATH = Kind(
    parse_path, lambda value: isinstance(value, Path) and is_utf8(str(value)), "a path in UTF-8, not empty", "DIR"
)
KINDS: dict[Any, Kind] = {int: COUNT, float: POSITIVE, bool: SWITCH, str: TEXT, Path: PATH}


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field says of itself."""

    kind: Kind | None = None  # None: as the field's type says
    metavar: str | None = None
    help: str | None = None  # None: cannot be typed, only written in a file
    key: str | None = None  # its name in a file's section, where that is not the field's
    in_file: bool = True
    positional: bool = False
    many: bool = False  # it takes one value or more


def option(help: str, default: Any = None, **more: Any) -> Any:  # noqa: A002
    """Declare an option that is called like its field. ``more``: as in ``Option``."""
    return field(default=default, metadata={"option": Option(help=help, **more)})


def typed(help: str, default: Any = None, **more: Any) -> Any:  # noqa: A002
    """Declare an option that no file has."""
    return option(help, default, in_file=False, **more)


def entry(**more: Any) -> Any:
    """Declare an option that only files have."""
    return field(default=None, metadata={"option": Option(**more)})


def argument(help: str, *, many: bool = False, **more: Any) -> Any:  # noqa: A002
    """Declare what is typed without a name; ``many``: one or more."""
    return field(metadata={"option": Option(help=help, positional=True, many=many, **more)})


def trust_option() -> Any:
    """The user's word on code, which no study's folder gives."""
    return option("run code that the model brings along", False)


def storage_option() -> Any:
    """The database that shows a study, which no study's folder names."""
    return option("the database that shows the study, where its search was given one", metavar="URL")


def study_argument() -> Any:
    """The study that a command works on."""
    return argument("the folder of a finished search, such as studies/demo", metavar="STUDY")


def device_option() -> Any:
    """The device of a command on a finished search."""
    return option("default: as chosen for the search")


def json_option() -> Any:
    """Whether the result is for a script."""
    return option("print the result as one line of JSON, all else on standard error", False)


def list_sections(record: type) -> list[type]:
    """The records that a record is made of, in order; itself last."""
    return [*(section for base in record.__bases__ if base is not object for section in list_sections(base)), record]


def list_options(section: type) -> Iterator[tuple[str, Option, Kind]]:
    """The options that a record declares itself, by field."""
    for name, annotation in inspect.get_annotations(section).items():
        known = section.__dataclass_fields__.get(name)  # type: ignore[attr-defined]  # None: no field, but KW_ONLY
        if known is not None and (declared := known.metadata.get("option")) is not None:
            [first, *_] = get_args(annotation) or [annotation]
            yield name, declared, declared.kind or KINDS[first]


def collect_options(record: type) -> dict[str, tuple[Option, Kind]]:
    """All options of a record, by field."""
    return {name: (said, kind) for section in list_sections(record) for name, said, kind in list_options(section)}


def spell_flag(name: str) -> str:
    """The option of a field.

    Example:
        >>> spell_flag("rng_seed")
        '--rng-seed'
    """
    return "--" + name.replace("_", "-")


def check_values(record: Any) -> None:
    """Read every value of a record as its option does, text too; to be called when one is made.

    Raises:
        SeedError: one is not allowed.
    """
    for name, (_, kind) in collect_options(type(record)).items():
        if (value := getattr(record, name)) is not None:
            try:
                object.__setattr__(record, name, kind.read(value))
            except ValueError as error:
                raise SeedError(f"{spell_flag(name)} {value}: {error}.") from error


class CommandParser(argparse.ArgumentParser):
    """A command line that answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and where all options are."""
        said = re.sub(r"^argument (\S+): (?=.*: wanted )", r"\1 ", message).removeprefix("argument ")
        self.exit(2, f"error: {spell_controls(said)}. All options: {self.prog} --help\n")


def make_parser(record: type, *, name: str | None = None, epilog: str | None = None) -> CommandParser:
    """The command line that fills a record, described by its docstring; its bases are groups, called by theirs.

    What is not typed is not there. ``name``: of one of several commands of a module.
    """
    spec = sys.modules[record.__module__].__spec__  # of __main__ too
    command = " ".join(
        filter(None, ["python -m", (spec.name if spec else record.__module__).removesuffix(".__main__"), name])
    )
    description, _, more = inspect.cleandoc(record.__doc__ or "").partition("\n\n")
    arguments = [said.metavar or "" for said, _ in collect_options(record).values() if said.positional]
    parser = CommandParser(
        prog=command,
        usage=" ".join([command, "[OPTIONS]", *arguments]),
        description=description,
        epilog=epilog or more or None,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=HELP_START, width=HELP_WIDTH),
    )
    for section in list_sections(record):
        options = [(name, said, kind) for name, said, kind in list_options(section) if said.help is not None]
        title = (section.__doc__ or "").rstrip(".")
        group = parser if section is record or not options else parser.add_argument_group(title)
        for name, said, kind in options:
            _add(group, name, said, kind, default=getattr(section, name, None))
    return parser


def _add(group: argparse._ActionsContainer, name: str, said: Option, kind: Kind, *, default: Any) -> None:
    flag, shown = spell_flag(name), (said.help or "").replace("%", "%%")
    if kind is SWITCH:
        for word, value in ((flag, True), (f"--no-{flag[2:]}", False)):
            group.add_argument(
                word,
                dest=name,
                action="store_const",
                const=value,
                help=argparse.SUPPRESS if value == default else shown,
            )
        return
    more: dict[str, Any] = {"nargs": "+"} if said.many else {}
    group.add_argument(
        name if said.positional else flag, type=kind, metavar=said.metavar or kind.metavar, help=shown, **more
    )


def read_command(record: type[Value], words: Sequence[str] | None = None, *, name: str | None = None) -> Value:
    """Read what was typed after a command into its record."""
    found = vars(make_parser(record, name=name).parse_args(words))
    return record(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def spell_command(module: str, options: Mapping[str, Any], *words: str) -> str:
    """The command of a module with these words and options; options that are None are left out.

    Example:
        >>> spell_command("seed.export", {"keep": 2, "rng_seeds": (0, 1), "device": None}, "studies/demo")
        'python -m seed.export studies/demo --keep 2 --rng-seeds 0 1'
    """
    found = ["python", "-m", module, *words]
    for name, value in options.items():
        flag = spell_flag(name)
        match value:
            case None:
                pass
            case True:
                found.append(flag)
            case False:
                found.append(f"--no-{flag[2:]}")
            case tuple():
                found += [flag, *map(str, value)]
            case float() if value.is_integer():
                found += [flag, str(int(value))]
            case _:
                found += [flag, str(value)]
    return shlex.join(found)


def quiet_libraries() -> None:
    """Keep libraries from drawing bars and warnings over ours, unless the user asked for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers.utils.logging.disable_progress_bar()  # of loading weights, which takes seconds
    enable_progress_bars()  # of downloads, which take minutes
    if not sys.warnoptions:
        import warnings

        warnings.filterwarnings("ignore", category=FutureWarning)
