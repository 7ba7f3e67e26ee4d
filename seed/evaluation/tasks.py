"""Tasks of lm-eval (EleutherAI's evaluation harness) on models that are open here: names in, scores out.

Numbers are lm-eval's own, by its own defaults: no chat template, its few-shot examples, its random seeds.
"""

import contextlib
import difflib
import importlib.util
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch

from seed.errors import ResourceError, SeedError, first_line, is_offline
from seed.records import TaskScore
from seed.study_dir import is_out_of_memory

CPU_BATCH = 8  # on a GPU lm-eval tries how much fits; on a CPU that would fill the machine's memory
REQUESTS = {"loglikelihood": "choices", "loglikelihood_rolling": "texts", "generate_until": "answers"}
OFFLINE_CURE = (
    "Connect to the hub once, so that it lies in the cache, or give tasks of your own that read local files "
    "(--include-path DIR)."
)

Watch = Callable[[str, int], AbstractContextManager[Callable[[float], None]]]


class _CountsAnswers(Protocol):
    """What lm-eval tells of every answered request; its cache of answers is made to listen there."""

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """Opened tasks with their data, ready to be run on any number of models."""

    manager: Any  # lm_eval.tasks.TaskManager
    opened: tuple[Any, ...]  # tasks and groups
    limit: int | None  # documents of each task
    batch: int | None  # requests at once; None: what the device takes
    allows_unsafe: bool


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One metric of one task on one model, with each document's share where the metric is their mean."""

    score: TaskScore
    by_document: tuple[float, ...] | None


def require_lm_eval() -> None:
    """Raise unless lm-eval is there and can be imported.

    Raises:
        SeedError: with the cure.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SeedError(
            "--tasks: needs lm-eval, which is not installed. Install it: pip install 'seed-search[tasks]' (or 'lm-eval>=0.4.12')."
        )
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface  # noqa: F401
    except Exception as error:  # one of the packages that it needs is missing, or of a version that does not fit
        raise SeedError(
            f"--tasks: lm-eval is installed, but cannot be imported ({type(error).__name__}: {first_line(error)}). Install it again with what it needs: "
            "pip install --upgrade 'seed-search[tasks]'."
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
    if include_path is not None and not include_path.is_dir():
        raise SeedError(f"--include-path {include_path}: no such directory. Give one with task files (YAML).")
    with _quiet():
        manager, found = _find(names, include_path)
        _seed()
        opened = _open_once(manager, found)
    unsafe = sorted({task.task_name for one in opened for task in _leaves(one) if getattr(task, "UNSAFE_CODE", False)})
    if unsafe and not allow_unsafe:
        raise SeedError(
            f"--tasks {', '.join(unsafe)}: runs code that the model writes, with all your rights. Add --confirm-unsafe-code where "
            "that can do no harm, or leave it out."
        )
    return TaskSet(manager=manager, opened=tuple(opened), limit=limit, batch=batch, allows_unsafe=allow_unsafe)


def score_tasks(model: Any, tokenizer: Any, tasks: TaskSet, *, watch: Watch) -> list[Scored]:
    """Run tasks on a model as it is, on its device and in its type.

    Args:
        model: a causal model of transformers.
        tokenizer: its own. It gets a padding token where it has none.
        tasks: what to run.
        watch: is entered for each kind of request with its name and how many there are, and yields what is to hear of
            each answer.

    Raises:
        SeedError: a task cannot be run on this model.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    batch = tasks.batch or (CPU_BATCH if model.device.type == "cpu" else "auto")
    with _quiet(), _without_bars():
        model_to_ask = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
        for request, what in REQUESTS.items():
            setattr(model_to_ask, request, _watched(model_to_ask, request, what, watch))
        try:
            chosen = tasks.manager.load(list(tasks.opened))
            for task in chosen["tasks"].values():
                if task.get_config("num_fewshot") is None:
                    task.set_config(key="num_fewshot", value=0)
                task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
            _seed()
            # simple_evaluate does the same, and then runs git, pip and more to describe the machine
            found = evaluate(model_to_ask, chosen, limit=tasks.limit, confirm_run_unsafe_code=tasks.allows_unsafe)
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                "--tasks: does not fit into the GPU's memory. Choose a smaller --task-batch, or --device cpu."
            ) from error
        except Exception as error:  # a task's functions raise what they like
            if is_out_of_memory(error):
                raise
            raise SeedError(
                f"--tasks: lm-eval cannot run them on this model ({type(error).__name__}: {first_line(error)}). Try them with lm-eval "
                "itself (lm-eval run --model dummy), or leave out the one that fails."
            ) from error
    return list(_read(found))


def compare_scores(model: Sequence[Scored], dense: Sequence[Scored] | None) -> list[TaskScore]:
    """The scores of a model, beside those of the dense model where it ran the same tasks.

    The standard error of a difference is that of the paired differences by document, which is much smaller than what the
    two standard errors would give; None where a metric is no mean over documents.
    """
    if dense is None:
        return [one.score for one in model]
    known = {(one.score.task, one.score.metric): one for one in dense}
    return [_compare(one, known[one.score.task, one.score.metric]) for one in model]


def _compare(model: Scored, dense: Scored) -> TaskScore:
    spread = None
    if model.by_document is not None and dense.by_document is not None and len(model.by_document) > 1:
        gaps = [ours - theirs for ours, theirs in zip(model.by_document, dense.by_document, strict=True)]
        mean = sum(gaps) / len(gaps)
        spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
    return msgspec.structs.replace(
        model.score,
        dense_value=dense.score.value,
        dense_standard_error=dense.score.standard_error,
        difference=model.score.value - dense.score.value,
        difference_standard_error=spread,
    )


def _find(names: Sequence[str], include_path: Path | None) -> tuple[Any, list[str]]:
    """The manager that knows these names, and the names without wildcards."""
    from lm_eval.tasks import TaskManager

    if (
        include_path is not None
    ):  # lm-eval's own index takes five seconds to build, and the user's tasks come first anyway
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(manager.all_subtasks):
            return manager, list(names)
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    found: list[str] = []
    unknown: list[str] = []
    for name in names:
        matches = sorted(manager.match_tasks([name]))
        found += [match for match in matches if match not in found]
        if not matches:
            unknown.append(name)
    if unknown:
        if include_path is not None:
            _refuse_broken(include_path)
        near = {name: difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6) for name in unknown}
        hints = [f"For {name}, did you mean {' or '.join(near[name])}?" for name in unknown if near[name]]
        raise SeedError(
            f"--tasks {','.join(unknown)}: lm-eval knows no such task. {' '.join(hints) or 'All names: lm-eval ls tasks.'}"
        )
    return manager, found


def _refuse_broken(include_path: Path) -> None:
    """Raise where a task file of the user's own is no YAML: lm-eval leaves such a file out without a word.

    Raises:
        SeedError: with the place.
    """
    import yaml

    for path in sorted(include_path.glob("**/*.yaml")):
        try:
            yaml.compose(path.read_text(encoding="utf-8"))  # nodes only: nothing is made of them
        except yaml.MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
            raise SeedError(
                f"{path}{line}: not YAML ({error.problem}), so the tasks in it are not known. Mend it."
            ) from error
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise SeedError(
                f"{path}: cannot be read ({type(error).__name__}: {first_line(error)}), so the tasks in it are not known. Mend it, or take it out of there."
            ) from error


def _open_once(manager: Any, names: Sequence[str]) -> list[Any]:
    """Tasks and groups of these names, none of them twice."""
    opened: list[Any] = []
    seen: dict[str, str] = {}  # task, and by which name it came
    for name in names:
        for one in _load(manager, name):
            leaves = [task.task_name for task in _leaves(one)]
            again = [leaf for leaf in leaves if leaf in seen]
            if again == leaves:
                continue
            if again:
                raise SeedError(
                    f"--tasks {name}: holds {again[0]}, which {seen[again[0]]} is or holds too. Leave one out."
                )
            seen.update(dict.fromkeys(leaves, name))
            opened.append(one)
    return opened


def _load(manager: Any, name: str) -> list[Any]:
    """The group of this name, else the task or the tasks."""
    try:
        loaded = manager.load([name])
    except Exception as error:  # data sets and the functions of tasks raise what they like
        raise _explain(name, error) from error
    group = loaded.get("groups", {}).get(name)
    return list(loaded["tasks"].values()) if group is None else [group]


def _leaves(opened: Any) -> list[Any]:
    return list(opened.get_all_tasks()) if hasattr(opened, "get_all_tasks") else [opened]


def _explain(name: str, error: BaseException) -> SeedError:
    if is_offline(error):
        return SeedError(
            f"--tasks {name}: its data is not in the local cache, and the hub cannot be reached. {OFFLINE_CURE}"
        )
    return SeedError(
        f"--tasks {name}: cannot be opened ({type(error).__name__}: {first_line(error)}). Try it with lm-eval itself (lm-eval run --model dummy --tasks {name})."
    )


def _watched(model: Any, request: str, what: str, watch: Watch) -> Callable[..., Any]:
    """The model's method for this kind of request, watched."""
    answer = getattr(model, request)

    def answer_watched(requests: Sequence[Any], **words: Any) -> Any:
        with watch(what, len(requests)) as advance:

            class Counts:
                def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
                    advance(1)

            listener: _CountsAnswers = Counts()
            model.set_cache_hook(listener)
            return answer(requests, **words | {"disable_tqdm": True})

    return answer_watched


def _seed() -> None:
    """Seed every source of random numbers as lm-eval's command does: some tasks draw theirs when they are opened."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval from commenting on what was decided here, and data sets from bars of their own; downloads keep theirs."""
    import datasets

    logger = logging.getLogger("lm_eval")
    before, had_bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(before)
        if had_bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep lm-eval's bars from among our lines: not all of its methods let a caller leave them out."""
    from tqdm import tqdm

    begin = tqdm.__init__

    def begin_hidden(bar: Any, *args: Any, **words: Any) -> None:
        begin(bar, *args, **words | {"disable": True})

    tqdm.__init__ = begin_hidden
    try:
        yield
    finally:
        tqdm.__init__ = begin


def _read(found: Any) -> Iterator[Scored]:
    """Every metric of every task that has a number."""
    for task, metrics in found["results"].items():
        samples = found.get("samples", {}).get(task, [])
        for name, value in metrics.items():
            metric, _, chosen = name.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            spread = metrics.get(f"{metric}_stderr,{chosen}")
            rows = [row.get(metric) for row in samples if row["filter"] == chosen]
            yield Scored(
                score=TaskScore(
                    task=task,
                    metric=metric if chosen == "none" else f"{metric} ({chosen})",
                    num_fewshot=_count_shots(found, task),
                    documents=int(metrics.get("sample_len") or len(rows)),
                    higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
                    value=float(value),
                    standard_error=float(spread) if isinstance(spread, (int, float)) else None,
                ),
                by_document=_split(rows, float(value)),
            )


def _count_shots(found: Any, task: str) -> int | None:
    shots = found["n-shot"].get(task)
    return shots if isinstance(shots, int) else None  # tasks of a group may differ


def _split(rows: Sequence[Any], value: float) -> tuple[float, ...] | None:
    """Each document's share, where the metric is their mean and nothing else."""
    if not rows or not all(isinstance(row, (int, float)) for row in rows):
        return None
    numbers = tuple(map(float, rows))
    return numbers if math.isclose(sum(numbers) / len(numbers), value, rel_tol=1e-9, abs_tol=1e-12) else None
