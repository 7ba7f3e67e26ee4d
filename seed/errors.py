"""What users meet instead of a traceback.

Every error here is one message that gives the place, what was found, what was wanted and the
cure, and ends a command with exit code 2. Violations of our own logic are ``assert``s, not these.
"""

# How the hub's libraries call it when the network is away and their cache lacks what is wanted.
OFFLINE_KINDS = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
    "MaxRetryError",
}


class SeedError(Exception):
    """The user can mend this; the message says how."""


class ModelError(SeedError):
    """A model cannot be opened, understood or proven."""


class CorpusError(SeedError):
    """A text source is missing, too short or of the wrong form."""


class SpaceError(SeedError):
    """A search space or one of its settings does not fit the model."""


class StudyError(SeedError):
    """A study's folder or storage cannot be used as asked."""


class ResourceError(SeedError):
    """Disk, memory or a device does not suffice."""


class CommandError(SeedError):
    """A command that the user handed in failed or printed something else than a number."""


class CandidateError(SeedError):
    """One candidate cannot be evaluated; others can, and a search goes on with them."""


def first_line(error: BaseException) -> str:
    """The line of what a library's error says that counts; one that says nothing is called by its kind."""
    told = str(error).strip().splitlines()
    if not told:
        return type(error).__name__
    # transformers checks its configs by huggingface_hub's dataclasses, whose errors name the check first
    return told[-1].strip() if type(error).__name__.startswith("StrictDataclass") else told[0]


def name_kinds(error: BaseException) -> set[str]:
    """Names of the kinds of an error and of those that it was raised from, libraries' own among them."""
    kinds: set[str] = set()
    known: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in known:
        known.append(link)
        kinds |= {kind.__name__ for kind in type(link).__mro__}
        link = link.__cause__ or link.__context__
    return kinds


def is_offline(error: BaseException) -> bool:
    """Does an error say that the hub was not reached?"""
    return bool(name_kinds(error) & OFFLINE_KINDS)
