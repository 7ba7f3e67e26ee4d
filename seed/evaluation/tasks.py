"""Tasks of lm-eval (EleutherAI's evaluation harness) on models that are open here: names in, scores out.

Numbers are lm-eval's own, by its own defaults: no chat template, its few-shot examples, its random seeds. So is the bar that
shows how far it is.
"""

import difflib
import itertools
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seed.config import StudyConfig
from seed.errors import ResourceError, SeedError, first_line, is_offline
from seed.models.provenance import hash_file
from seed.records import MetricScore, TaskScore, hash_text
from seed.study_dir import is_out_of_memory

CPU_BATCH = 8  # on a GPU lm-eval tries how much fits; on a CPU that would fill the machine's memory


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """Opened tasks with their data, ready to be run on any number of models."""

    opened: Any  # lm_eval.tasks.manager.TaskDict
    limit: int | None  # documents of each task
    batch: int | None  # requests at once; None: what the device takes
    allows_unsafe: bool
    files_sha256: str | None  # of the user's own task files

    @property
    def names(self) -> set[str]:
        """Tasks and groups that get scores."""
        return {*self.opened["tasks"], *self.opened["groups"]}


def require_lm_eval() -> None:
    """Raise unless lm-eval can be imported.

    Raises:
        SeedError: with the cure.
    """
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface  # noqa: F401
    except Exception as error:  # it is missing, or a package that it needs, or one is of a version that does not fit
        raise SeedError(
            f"--tasks: needs lm-eval, which cannot be imported ({type(error).__name__}: {first_line(error)}). Install it with what it "
            "needs: pip install --upgrade 'seed-search[tasks]' (or 'lm-eval>=0.4.12')."
        ) from error


def open_tasks(
    names: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    batch: int | None = None,
    allow_unsafe: bool = False,
) -> TaskSet:
    """Find tasks, groups and tags by their names (``arc_*`` is all that begin so), and load their data.

    Args:
        names: as lm-eval calls them, or the task files in ``include_path``.
        include_path: a directory with task files (YAML) of the user's own. They may name functions, which run.
        limit: at most so many documents of each task.
        batch: requests at once; None: what the device takes.
        allow_unsafe: also tasks that run code which the model writes.

    Raises:
        SeedError: lm-eval is missing, a name is unknown, or a task's data cannot be loaded.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise SeedError(f"--include-path {include_path}: no such directory. Give one with task files (YAML).")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it comments on what was decided here
    manager = TaskManager(include_path=include_path)
    matches = {name: sorted(manager.match_tasks([name])) for name in names}
    if unknown := [name for name, found in matches.items() if not found]:
        raise _refuse_unknown(unknown, manager.all_tasks, include_path)
    _seed()
    try:
        opened = manager.load(list(dict.fromkeys(itertools.chain(*matches.values()))))
    except Exception as error:  # data sets and the functions of tasks raise what they like
        raise _explain(names, error) from error
    unsafe = sorted(name for name, task in opened["tasks"].items() if getattr(task, "UNSAFE_CODE", False))
    if unsafe and not allow_unsafe:
        raise SeedError(
            f"--tasks {', '.join(unsafe)}: runs code that the model writes, with all your rights. Add --confirm-unsafe-code where "
            "that can do no harm, or leave it out."
        )
    return TaskSet(
        opened=opened,
        limit=limit,
        batch=batch,
        allows_unsafe=allow_unsafe,
        files_sha256=None if include_path is None else _hash_task_files(include_path),
    )


def open_asked(asked: StudyConfig) -> dict[str, TaskSet]:
    """Open the tasks that were asked for, by the names they were asked by.

    Raises:
        SeedError: one cannot be opened, or gives no score that a model could be bound to keep.
    """
    opened = {
        name: open_tasks(
            [name],
            include_path=asked.include_path,
            limit=asked.task_limit,
            batch=asked.task_batch,
            allow_unsafe=asked.confirm_unsafe_code,
        )
        for name in dict.fromkeys(asked.tasks or ())
    }
    known = set[str]().union(*(one.names for one in opened.values()))
    if strange := sorted(asked.floors.keys() - known):
        raise SeedError(
            f"--min-task {strange[0]}: no such task is asked for; there are: {', '.join(sorted(known))}. Name one of these."
        )
    return opened


def score_tasks(model: Any, tokenizer: Any, tasks: TaskSet) -> list[MetricScore]:
    """Run tasks on a causal model of transformers as it is, on its device and in its type.

    Args:
        model: is asked.
        tokenizer: its own. It gets a padding token where it has none.
        tasks: what to run.

    Raises:
        SeedError: a task cannot be run on this model.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    batch = tasks.batch or (CPU_BATCH if model.device.type == "cpu" else "auto")
    for task in tasks.opened["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    _seed()
    try:
        # simple_evaluate does the same, and then runs git, pip and more to describe the machine
        asked = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
        found = evaluate(asked, tasks.opened, limit=tasks.limit, confirm_run_unsafe_code=tasks.allows_unsafe)
    except Exception as error:  # a task's functions raise what they like
        if is_out_of_memory(error):
            raise ResourceError(
                "--tasks: does not fit into memory. Choose a smaller --task-batch, or --device cpu."
            ) from error
        raise SeedError(
            f"--tasks: lm-eval cannot run them on this model ({type(error).__name__}: {first_line(error)}). Try them with lm-eval "
            "itself (lm-eval run --model dummy), or leave out the one that fails."
        ) from error
    return list(_read(found))


def _hash_task_files(include_path: Path) -> str:
    """A hash of task files and the functions that they name; their data it does not see."""
    files = sorted(path for path in include_path.rglob("*") if path.suffix in (".yaml", ".yml", ".py"))
    return hash_text(repr([(str(path.relative_to(include_path)), hash_file(path)) for path in files]))


def _refuse_unknown(unknown: Sequence[str], known: Sequence[str], include_path: Path | None) -> SeedError:
    near = {name: difflib.get_close_matches(name, known, n=3, cutoff=0.6) for name in unknown}
    hints = [f"For {name}, did you mean {' or '.join(near[name])}?" for name in unknown if near[name]]
    where = (
        "" if include_path is None else f" Of the files in {include_path} it leaves out without a word what is no YAML."
    )
    return SeedError(
        f"--tasks {','.join(unknown)}: lm-eval knows no such task.{where} {' '.join(hints) or 'All names: lm-eval ls tasks.'}"
    )


def _explain(names: Sequence[str], error: Exception) -> SeedError:
    said = f"--tasks {','.join(names)}: lm-eval cannot open them ({type(error).__name__}: {first_line(error)})"
    if is_offline(error):
        return SeedError(
            f"{said}: the hub cannot be reached, and not all data is in the local cache. Connect to the hub once, or give tasks "
            "of your own that read local files (--include-path DIR)."
        )
    return SeedError(f"{said}. Try each with lm-eval itself (lm-eval run --model dummy --tasks NAME).")


def _seed() -> None:
    """Seed every source of random numbers as lm-eval's command does: some tasks draw theirs when they are opened."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)


def _read(found: Any) -> Iterator[MetricScore]:
    """Every metric of every task that has a number."""
    for task, metrics in found["results"].items():
        samples, shots = found.get("samples", {}).get(task, []), found["n-shot"].get(task)
        for name, value in metrics.items():
            metric, _, chosen = name.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            spread = metrics.get(f"{metric}_stderr,{chosen}")
            rows = [row.get(metric) for row in samples if row["filter"] == chosen]
            yield MetricScore(
                score=TaskScore(
                    task=task,
                    metric=metric if chosen == "none" else f"{metric} ({chosen})",
                    num_fewshot=shots if isinstance(shots, int) else None,  # tasks of a group may differ
                    documents=int(metrics.get("sample_len") or len(rows)),
                    higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
                    value=float(value),
                    standard_error=float(spread) if isinstance(spread, (int, float)) else None,
                ),
                by_document=_split(rows, float(value)),
            )


def _split(rows: Sequence[Any], value: float) -> tuple[float, ...] | None:
    """Each document's share, where the metric is their mean and nothing else."""
    if not rows or not all(isinstance(row, (int, float)) for row in rows):
        return None
    numbers = tuple(map(float, rows))
    return numbers if math.isclose(sum(numbers) / len(numbers), value, rel_tol=1e-9, abs_tol=1e-12) else None
