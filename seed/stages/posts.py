"""One process's post among all that work on a study: who it is, whether it leads, and how it takes its share.

The process that holds the folder leads: it proves, measures, decides, and writes what is decided. Others help with what can
be shared out. What a share is worth is not known here.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from seed import untrusted
from seed.folder import StudyFolder
from seed.optimize.teamwork import Worker
from seed.presence import Presence
from seed.sharing import Shares


@dataclass(frozen=True, kw_only=True)
class Post:
    """Where one process works."""

    study: StudyFolder
    presence: Presence
    leads: bool
    num_workers: int = 1  # of this host, that share its cores

    @property
    def worker(self) -> Worker:
        """Who we are to others at the study's trials."""
        return Worker(name=self.presence.name, is_there=self.presence.is_there)

    def share(self, what: str) -> Shares:
        """Our share of a list of work that all processes of this host have alike."""
        return Shares(self.study.work / f"{what}.shares")

    @contextlib.contextmanager
    def share_cores(self) -> Iterator[None]:
        """Compute with our part of the host's cores until the block ends."""
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, before // self.num_workers))
        try:
            yield
        finally:
            torch.set_num_threads(before)


def open_post(study: StudyFolder, *, leads: bool, num_workers: int = 1) -> Post:
    """A post in a study's folder, where nothing leads out of it.

    Raises:
        StudyError: something does.
    """
    untrusted.refuse_strays(study.root)
    presence = Presence(study.present)
    return Post(study=study, presence=presence, leads=leads, num_workers=num_workers)
