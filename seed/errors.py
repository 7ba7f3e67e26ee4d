"""What users meet instead of a traceback.

Every error here is one message that gives the place, what was found, what was wanted and the
cure, and ends a command with exit code 2. Violations of our own logic are ``assert``s, not these.
"""


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
    """The first line of what a library's error says; one that says nothing is called by its kind."""
    told = str(error).strip()
    return told.splitlines()[0] if told else type(error).__name__
