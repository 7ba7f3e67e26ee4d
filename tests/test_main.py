"""``python -m seed`` lists the commands; ``seed NAME`` is another way to type ``python -m seed.NAME``."""

from pathlib import Path

from seed import __main__, __version__
from tests.running import error_of, run_seed


def test_commands_are_listed_with_a_line_each(tmp_path: Path) -> None:
    shown = run_seed("seed.__main__", cwd=tmp_path).stdout.partition("\n\n")[0].splitlines()
    assert [line.split()[2].removeprefix("seed.") for line in shown] == list(__main__.COMMANDS)
    assert all(len(line.split()) > 4 for line in shown)
    assert run_seed("seed.__main__", "--version", cwd=tmp_path).stdout == f"seed {__version__}\n"


def test_a_command_is_run_as_python_m_runs_it(tmp_path: Path) -> None:
    assert run_seed("seed.__main__", "report", "--help", cwd=tmp_path).stdout.startswith(
        "usage: python -m seed.report "
    )
    assert "--model x/y/z: no such directory" in error_of(
        run_seed("seed.__main__", "search", "--model", "x/y/z", cwd=tmp_path, code=2)
    )
    assert "seed serach: no such command" in error_of(run_seed("seed.__main__", "serach", cwd=tmp_path, code=2))
