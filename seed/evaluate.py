"""Perplexity and latency of any checkpoint, by Seed's protocol: python -m seed.evaluate studies/demo/models/drop-1

A model inside a study is judged on that study's test text, beside its dense model. Any other model (a
directory, a hub id, a preset's name) is judged alone, on the text you name, or else its preset's.
With ``--tasks`` both are also judged by tasks of lm-eval.
"""

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed import resolve
from seed.cli import NAMES, argument, json_option, option, read_command, trust_option
from seed.config import StudyConfig, list_presets
from seed.console import Terminal, answer_in_json, run_command
from seed.errors import ModelError, SeedError
from seed.folder import StudyFolder, read_record
from seed.models.integrity import find_damage, refuse_damaged
from seed.records import DistillResult, Latency, Quality, Size, TaskScore
from seed.reporting.result_line import JudgedLine, describe_judged
from seed.reporting.wording import count_things, format_bytes, format_latency_ratio
from seed.resolve import choose_text, choose_window
from seed.stages import planning

if TYPE_CHECKING:
    from seed.scoring.corpus import TokenStream
    from seed.scoring.tasks import TaskSet

EXPORTS = ("models", "unrecovered")  # a study's folders of checkpoints


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What ``evaluate`` found. Ratios are to the study's dense model; 1 when there is none."""

    test: Quality
    latency: Latency
    size: Size
    protocol: str
    tasks: tuple[TaskScore, ...] = ()


def evaluate_in_study(
    path: Path,
    study: StudyFolder,
    *,
    window_tokens: int | None = None,
    test_tokens: int | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    tasks: "TaskSet | None" = None,
    terminal: Terminal | None = None,
) -> Judgement:
    """Judge an exported model of a study on the study's test text, and by tasks, beside the dense model.

    ``window_tokens``, ``test_tokens``: other windows of that text, or another amount of it, than the study has.

    Raises:
        SeedError: the checkpoint cannot be loaded, model or text changed since the search, or the model's code wants the user's word.
    """
    study, _, protocol = planning.open_planned(study.root, trust_remote_code=trust_remote_code)
    planning.quiet_libraries()
    from seed.models.checkpoint import load_checkpoint, load_tokenizer, measure_size
    from seed.scoring.latency import measure_pair, prepare_run
    from seed.scoring.quality import choose_micro_batch, compare_models, judge, logits_of
    from seed.scoring.tasks import compare_scores, score_tasks
    from seed.stages import protocols, workbench

    bench = workbench.reopen(study, protocol, device_name=device)
    vocabulary, window = bench.anatomy.config.vocab_size, window_tokens or protocol.window_tokens
    stream = workbench.take_test_text(bench, window_tokens=window, test_tokens=test_tokens)
    model = load_checkpoint(path, device=bench.device, dtype=bench.dtype)
    dense, [(losses, closeness)] = compare_models(
        logits_of(bench.teacher.model),
        [logits_of(model)],
        stream,
        micro_batch=choose_micro_batch(window, vocabulary, device=bench.device),
        device=bench.device,
    )
    latency = measure_pair(
        prepare_run(bench.teacher.model, bench.workload, vocabulary=vocabulary),
        prepare_run(model, bench.workload, vocabulary=vocabulary),
        bench.workload,
        structure=path.name,
        device=protocols.name_device(bench.device),
    )
    scores: list[TaskScore] = []
    if tasks is not None:
        watch = functools.partial(_watch, terminal or Terminal(quiet=True))
        ours = score_tasks(model, load_tokenizer(path), tasks, watch=functools.partial(watch, path.name))
        theirs = score_tasks(
            bench.teacher.model, bench.teacher.tokenizer, tasks, watch=functools.partial(watch, "dense")
        )
        scores = compare_scores(ours, theirs)
    return Judgement(
        test=judge(losses, dense, closeness=closeness),
        latency=latency,
        size=measure_size(model, dtype=bench.teacher.stored_dtype),
        protocol=_describe(window, protocol.dtype, stream),
        tasks=tuple(scores),
    )


def evaluate_alone(
    name: str,
    *,
    text: str | None,
    window_tokens: int | None,
    test_tokens: int | None,
    device: str | None = None,
    trust_remote_code: bool = False,
    tasks: "TaskSet | None" = None,
    terminal: Terminal | None = None,
) -> Judgement:
    """Judge any model on a text of its own, the whole of a file or the test split of a corpus, and by tasks.

    Raises:
        SeedError: model or text cannot be opened.
    """
    settings = resolve.fill_from_files(StudyConfig(model=name, trust_remote_code=trust_remote_code))
    planning.quiet_libraries()
    from seed.models.anatomy import text_config
    from seed.models.checkpoint import measure_size
    from seed.models.checks import refuse_ids
    from seed.models.teacher import check_source, choose_device, open_teacher
    from seed.scoring.corpus import open_test_stream
    from seed.scoring.latency import Workload, measure_pair, prepare_run
    from seed.scoring.quality import choose_micro_batch, judge, logits_of, measure_losses
    from seed.scoring.tasks import compare_scores, score_tasks
    from seed.stages import protocols

    text = choose_text(name) if text is None else text
    source = protocols.find_source(settings)
    if source.location == "demo":
        source = replace(source, location=str(protocols.resolve_location(source.location)))
    check_source(source, presets=list_presets())
    chosen = choose_device(device)
    teacher = open_teacher(source, device=chosen, dtype_name=None, will_cut=False)
    config = text_config(teacher.model)
    longest = getattr(config, "max_position_embeddings", None) or 1024
    window, why = choose_window(name, window_tokens, longest=longest)
    if terminal is not None:
        for note in teacher.notes:
            terminal.say(f"model:      {note}")
        terminal.say(f"windows:    {window} tokens, {why}")
    if not 2 <= window <= longest:
        raise ModelError(
            f"windows of {window} tokens ({why}): {name} reads 2 to {longest} tokens at once. Give --window-tokens between."
        )
    stream = open_test_stream(
        text,
        teacher.tokenizer,
        window_tokens=window,
        bos_each_window=config.model_type.startswith(protocols.NEED_BOS),
        max_tokens=test_tokens,
    )
    refuse_ids(stream.tokens_NT, teacher.model, source=stream.source)
    micro_batch = choose_micro_batch(window, config.vocab_size, device=chosen)
    losses = measure_losses(logits_of(teacher.model), stream, micro_batch=micro_batch, device=chosen)
    workload = Workload(batch=1, prompt_tokens=min(128, longest // 2), new_tokens=min(64, longest // 2), repeats=5)
    run = prepare_run(teacher.model, workload, vocabulary=config.vocab_size)
    latency = measure_pair(run, run, workload, structure=name, device=protocols.name_device(chosen))
    scores: list[TaskScore] = []
    if tasks is not None:
        watch = functools.partial(_watch, terminal or Terminal(quiet=True), Path(name).name)
        scores = compare_scores(score_tasks(teacher.model, teacher.tokenizer, tasks, watch=watch), None)
    return Judgement(
        test=judge(losses, losses),
        latency=latency,
        size=measure_size(teacher.model, dtype=teacher.stored_dtype),
        protocol=_describe(window, str(teacher.dtype).removeprefix("torch."), stream),
        tasks=tuple(scores),
    )


@contextlib.contextmanager
def _watch(terminal: Terminal, model: str, what: str, total: int) -> Iterator[Callable[[float], None]]:
    """Show how far a model is with the requests of the tasks."""
    with terminal.stage(f"tasks, {what} of {model}", total=total) as advance:
        yield lambda amount: advance(amount, "")


def _describe(window_tokens: int, dtype: str, text: "TokenStream") -> str:
    windows = f"non-overlapping windows of {window_tokens} tokens, the first of each unscored"
    return "; ".join((text.source, *text.notes, windows, f"computed in {dtype}"))


def find_study(path: Path) -> StudyFolder | None:
    """The study that an exported model belongs to: studies/NAME/models/KEY, or unrecovered/KEY."""
    resolved = path.expanduser().resolve()
    parents = resolved.parents
    study = StudyFolder(parents[1]) if len(parents) > 1 and parents[0].name in EXPORTS else None
    return study if study is not None and study.plan.is_file() and resolved.is_dir() else None


def check_model(path: Path) -> None:
    """Check that an exported model is as it was written; in a study by the study's word, else by its own.

    Raises:
        ModelError: with the file's name.
    """
    whole, study = path.resolve(), find_study(path)
    if study is None or whole.parent != study.models or not study.result(whole.name).is_file():
        refuse_damaged(path, place=str(path))
        return
    known = read_record(study.result(whole.name), DistillResult)
    if damage := find_damage(path, provenance_sha256=known.provenance_sha256):
        trial = known.trial_number
        command = "the same search again" if trial is None else f"python -m seed.distill {study.root} --trial {trial}"
        raise ModelError(f"{path}: damaged: {damage}. Write it again: {command}")


def show_judgement(terminal: Terminal, found: Judgement, *, beside_dense: bool) -> None:
    """Print what was found."""
    test, latency, size = found.test, found.latency, found.size
    terminal.say(f"text:       {found.protocol}; {test.tokens:,} tokens in {count_things(test.documents, 'document')}")
    ratio = f", ratio to dense {test.ppl_ratio:.4f} ± {test.ppl_ratio_standard_error:.4f}" if beside_dense else ""
    terminal.say(
        f"perplexity: {test.perplexity:.3f} (loss {test.loss:.4f} ± {test.standard_error:.4f} nats a token){ratio}"
    )
    if test.kl_divergence is not None and test.top1_agreement is not None:
        terminal.say(
            f"closeness:  KL {test.kl_divergence:.4f} nats a token, same top token in {test.top1_agreement:.1%}"
        )
    ratio = f", ratio to dense {format_latency_ratio(latency)}" if beside_dense else ""
    busy = f"; the machine was busy: {latency.disturbance}" if latency.disturbance else ""
    terminal.say(
        f"latency:    {latency.median_ms:.1f} ms ({latency.p10_ms:.1f} to {latency.p90_ms:.1f}) to {latency.workload}, on {latency.device}{ratio}{busy}"
    )
    terminal.say(
        f"size:       {size.num_params:,} parameters, {format_bytes(size.weight_bytes)} of weights, "
        f"{format_bytes(size.kv_bytes_per_token)} of KV cache a token"
    )


def show_tasks(terminal: Terminal, scores: tuple[TaskScore, ...], *, limit: int | None) -> None:
    """Print the scores of tasks; beside the dense model's where it ran them."""
    beside_dense = scores[0].dense_value is not None
    columns = ["task", "metric", "shots", "documents", "value", *(["dense", "difference"] if beside_dense else [])]
    arrows = {True: " ↑", False: " ↓", None: ""}
    terminal.show_table(
        columns,
        [
            [
                one.task,
                one.metric + arrows[one.higher_is_better],
                "" if one.num_fewshot is None else str(one.num_fewshot),
                f"{one.documents:,}",
                _spell(one.value, one.standard_error),
                *(
                    []
                    if one.dense_value is None or one.difference is None
                    else [
                        _spell(one.dense_value, one.dense_standard_error),
                        _spell(one.difference, one.difference_standard_error, sign="+"),
                    ]
                ),
            ]
            for one in scores
        ],
        num_words=2,
    )
    some = "all documents" if limit is None else f"the first {count_things(limit, 'document')} of each task"
    paired = "; that of a difference is paired by document" if beside_dense else ""
    version = importlib.metadata.version("lm-eval")
    terminal.say(f"tasks:      lm-eval {version}, {some}, no chat template; ± is a standard error{paired}")


def _spell(value: float, spread: float | None, *, sign: str = "") -> str:
    return f"{value:{sign}.4f}" + ("" if spread is None else f" ± {spread:.4f}")


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Tasks of lm-eval, besides (pip install 'seed-search[tasks]')."""

    tasks: tuple[str, ...] | None = option("such as arc_easy,hellaswag; lm-eval ls tasks lists them", kind=NAMES)
    task_limit: int | None = option("the first N documents of each task (default: all)")
    task_batch: int | None = option("requests at once (default: 8 on the CPU, as many as fit on a GPU)")
    include_path: Path | None = option("task files of your own; functions that they name are run")
    confirm_unsafe_code: bool = option("also tasks that run code which the model writes", False)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(TaskOptions):
    """Perplexity and latency of a checkpoint."""

    model: str = argument("studies/NAME/models/KEY, any directory, a hub id, or a preset's name", metavar="MODEL")
    test_text: str | None = option(
        "text to judge on (default: the study's or the preset's, else wikitext2)", metavar="SOURCE"
    )
    window_tokens: int | None = option("length of the windows (default: the study's, else up to 1,024)")
    test_tokens: int | None = option("use at most N tokens (default: as the study, or all)")
    device: str | None = option("cpu, cuda, cuda:1")
    trust_remote_code: bool = trust_option()
    json: bool = json_option()


def evaluate(args: EvaluateCommand, terminal: Terminal) -> JudgedLine:
    """Judge as told on the command line, say what was found, and return it as ``--json`` prints it."""
    tasks = read_tasks(args)
    check_model(Path(args.model).expanduser())
    study = find_study(Path(args.model)) if args.test_text is None else None
    same = ("window_tokens", "test_tokens", "device", "trust_remote_code")
    told: dict[str, Any] = {name: getattr(args, name) for name in same} | {"tasks": tasks, "terminal": terminal}
    if study is not None:
        found = evaluate_in_study(Path(args.model), study, **told)
    else:
        found = evaluate_alone(args.model, text=args.test_text, **told)
    is_beside = study is not None
    show_judgement(terminal, found, beside_dense=is_beside)
    if found.tasks:
        show_tasks(terminal, found.tasks, limit=args.task_limit)
    return describe_judged(
        args.model, found.protocol, found.test, found.latency, found.size, found.tasks, beside_dense=is_beside
    )


def read_tasks(args: EvaluateCommand) -> "TaskSet | None":
    """Open the tasks that the command line names, with their data, before anything that takes long.

    Raises:
        SeedError: they cannot be run as asked.
    """
    if not args.tasks:
        for name in ("task_limit", "task_batch", "include_path", "confirm_unsafe_code"):
            if getattr(args, name) not in (None, False):
                raise SeedError(f"--{name.replace('_', '-')}: no task is named. Add --tasks NAMES, or leave it out.")
        return None
    planning.quiet_libraries()
    from seed.scoring.tasks import open_tasks

    return open_tasks(
        args.tasks,
        include_path=args.include_path,
        limit=args.task_limit,
        batch=args.task_batch,
        allow_unsafe=args.confirm_unsafe_code,
    )


def main() -> None:
    """Read the command line and judge."""
    args = read_command(EvaluateCommand)
    if args.json:
        answer_in_json(functools.partial(evaluate, args))
    else:
        evaluate(args, Terminal())


if __name__ == "__main__":
    run_command(main)
