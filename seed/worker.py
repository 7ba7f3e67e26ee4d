"""One worker of a search that has several. Not for people: ``python -m seed.search --workers N`` starts it.

Its order comes as a line on standard input, which stays open as long as who started it lives; further lines are news for
people who watch.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

from seed import interrupts
from seed.console import Terminal
from seed.errors import SeedError
from seed.folder import explain_resource_errors
from seed.stages.settings import SearchSettings

ORPHANED = 3  # exit code of a worker whose parent is gone


def main() -> None:
    """Read the order, and search or help."""
    interrupts.listen()
    lines = read_lines()
    order = json.loads(next(lines))
    terminal = Terminal(quiet=order["is_quiet"] or order["number"] > 0)
    threading.Thread(target=hear_news, args=(lines, terminal), daemon=True).start()
    try:
        with explain_resource_errors(Path.cwd()):
            work(order, terminal)
    except SeedError as error:
        os.write(order["words"], f"{error}\n".encode())  # who started us prints it
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:  # whoever asked for that says so
        raise SystemExit(stop.exit_code if isinstance(stop, interrupts.Stopped) else 130) from None


def read_lines() -> Any:
    """Yield the lines of standard input, read without a buffer that an ending interpreter would trip over."""
    held = b""
    while piece := os.read(0, 4096):
        *whole, held = (held + piece).split(b"\n")
        yield from (line.decode() for line in whole)


def hear_news(lines: Any, terminal: Terminal) -> None:
    """Pass news on to people who watch, and end at once when nobody looks after us any more."""
    for line in lines:
        terminal.say(line)
    os._exit(ORPHANED)


def work(order: dict[str, Any], terminal: Terminal) -> None:
    """Lead the search, or help it."""
    from seed.folder import StudyFolder
    from seed.search import search_here
    from seed.stages import helping, planning
    from seed.stages.posts import open_post

    settings = SearchSettings(**order["settings"])
    if order["number"] == 0:
        search_here(settings, terminal, num_workers=order["num_workers"])
        return
    settings, preset = planning.start_from_preset(settings)
    planning.quiet_libraries()
    study = StudyFolder(settings.studies_dir / planning.name_study(settings))
    post = open_post(study, leads=False, num_workers=order["num_workers"])
    helping.help_search(settings, preset, post, terminal, is_over=lambda: False)


if __name__ == "__main__":
    main()
