"""Perplexity and latency of any checkpoints, by Seed's protocol: python -m seed.evaluate studies/demo/models/drop-1

A model inside a study is judged on that study's test text, beside its dense model. Any other model (a
directory, a GGUF file, a hub id, a preset's name) is judged alone, on the text you name, or else its preset's.
With ``--tasks`` both are also judged by tasks of lm-eval.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from seed import plans, resolve
from seed.cli import argument, json_option, make_parser, option, quiet_libraries, spell_flag, trust_option
from seed.config import LatencySection, StudyConfig, TaskSection
from seed.console import Terminal, answer, run_command
from seed.errors import ModelError, SeedError
from seed.models.provenance import find_damage, find_origin, refuse_damaged
from seed.records import DistillResult, DraftTiming, Latency, Quality, Size, TaskScore
from seed.reporting.result_line import JudgedLine, JudgedLines, describe_judged
from seed.reporting.result_text import write_table
from seed.reporting.wording import (
    count_things,
    describe_draft,
    describe_drafting,
    format_bytes,
    format_interval,
    format_latency_ratio,
    format_number,
)
from seed.resolve import choose_text, choose_window, list_presets
from seed.results import expect_drafting, read_excess
from seed.study_dir import StudyFolder, read_record

if TYPE_CHECKING:
    import torch

    from seed.data.corpus import TokenStream
    from seed.evaluation.latency import Workload
    from seed.evaluation.tasks import TaskSet
    from seed.models.loader import Teacher
    from seed.sessions import Session

DRAFT_PROMPTS = 8
EXPORTS = ("models", "unrecovered")  # a study's folders of checkpoints


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(TaskSection, LatencySection):
    """Perplexity and latency of checkpoints.

    In a study, what is not told is as in its search.
    """

    model: tuple[str, ...] = argument(
        "studies/NAME/models/KEY, any directory or GGUF file, a hub id, or a preset's name; one or more",
        metavar="MODEL",
        many=True,
    )
    test_text: str | None = option(
        "text to judge on (default: the study's or the preset's, else wikitext2)", metavar="SOURCE"
    )
    window_tokens: int | None = option("length of the windows (default: the study's, else up to 1,024)")
    test_tokens: int | None = option("use at most N tokens (default: as the study, or all)")
    draft: bool = option("also time it as a draft of the dense model, in speculative decoding", False)
    device: str | None = option("cpu, cuda, cuda:1")
    trust_remote_code: bool = trust_option()
    json: bool = json_option()
    given: frozenset[str] = frozenset()  # what was typed, even where it is the default

    def __post_init__(self) -> None:
        if self.latency_command and (told := self.list_told() - {"latency_repeats"}):
            raise SeedError(
                f"{spell_flag(min(told))}: says how Seed times, but --latency-command times by your own. Leave one out."
            )

    def list_told(self) -> set[str]:
        """What is told of the workload."""
        names = ("latency_batch", "prompt_tokens", "new_tokens", "latency_repeats", "compiled")
        return {name for name in names if name in self.given or getattr(self, name) != getattr(LatencySection, name)}

    def choose_workload(self, usual: "Workload") -> "Workload":
        """What is timed: as told, and else as usual."""
        fields = {"latency_batch": "batch", "latency_repeats": "repeats"}
        return replace(usual, **{fields.get(name, name): getattr(self, name) for name in self.list_told()})


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is to be judged, with its text, and beside its dense model where it has one."""

    name: str
    judged: "Teacher"
    dense: "Teacher | None"
    stream: "TokenStream"
    workload: "Workload"


def open_in_study(path: Path, study: StudyFolder, args: EvaluateCommand, opened: "dict[Path, Session]") -> Subject:
    """Open an exported model of a study with the study's test text, beside the dense model. ``opened``: studies that are.

    Raises:
        SeedError: the checkpoint cannot be loaded, model or text changed since the search, or the model's code wants the user's word.
    """
    study, plan = plans.open_planned(study.root, trust_remote_code=args.trust_remote_code)
    quiet_libraries()
    from seed import sessions
    from seed.models.checkpoint import load_export, load_tokenizer

    if study.root not in opened:
        opened[study.root] = sessions.reopen(study, plan.protocol, device_name=args.device)
    session = opened[study.root]
    model = load_export(path, device=session.device, dtype=session.dtype)
    window = args.window_tokens or plan.protocol.window_tokens
    return Subject(
        name=path.name,
        judged=replace(session.teacher, model=model, tokenizer=load_tokenizer(path), directory=path),
        dense=session.teacher,
        stream=sessions.take_test_text(session, window_tokens=window, test_tokens=args.test_tokens),
        workload=args.choose_workload(session.workload),
    )


def open_alone(name: str, args: EvaluateCommand, terminal: Terminal) -> Subject:
    """Open any model with a text of its own, the whole of a file or the test split of a corpus."""
    settings = resolve.fill_from_files(StudyConfig(model=name, trust_remote_code=args.trust_remote_code))
    quiet_libraries()
    from seed import protocols
    from seed.data.corpus import open_test_stream
    from seed.evaluation.latency import Workload
    from seed.models.anatomy import text_config
    from seed.models.checks import refuse_ids
    from seed.models.loader import check_source, choose_device, open_teacher
    from seed.models.surgery import remove_parts

    text = args.test_text or choose_text(name)
    source = protocols.find_source(settings)
    check_source(source, presets=list_presets())
    device = choose_device(args.device)
    teacher = open_teacher(source, device=device, dtype_name=None, will_cut=False)
    config = text_config(teacher.model)
    longest = getattr(config, "max_position_embeddings", None) or 1024
    window, why = choose_window(name, args.window_tokens, longest=longest)
    if (made := find_origin(name)) is not None:
        remove_parts(teacher.model, made.candidate)
    for note in teacher.notes:
        terminal.say(f"model:      {note}")
    terminal.say(f"windows:    {window} tokens, {why}")
    protocols.require_window(window, config)
    stream = open_test_stream(
        text,
        teacher.tokenizer,
        window_tokens=window,
        bos_each_window=protocols.needs_bos(config),
        max_tokens=args.test_tokens,
    )
    refuse_ids(stream.tokens_NT, teacher.model, source=stream.source)
    usual = Workload(batch=1, prompt_tokens=min(128, longest // 2), new_tokens=min(64, longest // 2), repeats=24)
    return Subject(
        name=Path(name).name, judged=teacher, dense=None, stream=stream, workload=args.choose_workload(usual)
    )


def judge_subject(
    name: str, subject: Subject, args: EvaluateCommand, *, tasks: "TaskSet | None", terminal: Terminal
) -> JudgedLine:
    """Judge an opened model on its text, by its latency, and by tasks, beside its dense model where it has one; say what was found."""
    from seed.evaluation.tasks import score_tasks
    from seed.models.checkpoint import measure_size
    from seed.optimize.analysis import compare_scores

    judged, dense, stream = subject.judged, subject.dense, subject.stream
    with terminal.stage(f"judging {subject.name}", total=2, is_share=True) as advance:
        test = judge_text(subject, on_windows=lambda count: advance(count / len(stream.tokens_NT), "perplexity"))
        advance(0, "latency")
        latency = time_subject(subject, args.latency_command)
        advance(1, "")
    scores: list[TaskScore] = []
    if tasks is not None:
        terminal.say(f"tasks:      lm-eval asks {subject.name}{'' if dense is None else ', then the dense model'}")
        ours = score_tasks(judged.model, judged.tokenizer, tasks)
        scores = compare_scores(ours, None if dense is None else score_tasks(dense.model, dense.tokenizer, tasks))
    draft = time_drafting(subject, test, latency, terminal) if args.draft else None
    windows = f"non-overlapping windows of {stream.tokens_NT.shape[1]} tokens, the first of each unscored"
    dtype = f"computed in {str(judged.dtype).removeprefix('torch.')}"
    protocol = "; ".join((stream.source, *stream.notes, windows, dtype))
    size, is_beside = measure_size(judged.model, dtype=judged.stored_dtype), dense is not None
    show_judgement(terminal, protocol, test, latency, size, draft=draft, beside_dense=is_beside)
    if scores:
        show_tasks(terminal, scores, limit=args.task_limit)
    return describe_judged(name, protocol, test, latency, size, scores, draft, beside_dense=is_beside)


def time_drafting(subject: Subject, test: Quality, latency: Latency, terminal: Terminal) -> DraftTiming:
    """Time the dense model with this one as its draft, on beginnings of test text, as many tokens ahead as are expected to be best.

    Raises:
        ModelError: there is no dense model, or transformers cannot use this family so.
    """
    from seed.evaluation.drafting import time_draft

    assert subject.dense is not None, "evaluate_one asked for a model of a study"
    windows_NT, workload = subject.stream.tokens_NT, subject.workload
    length = min(workload.prompt_tokens, windows_NT.shape[1] - 1)
    prompts_BT = windows_NT[:: max(1, len(windows_NT) // DRAFT_PROMPTS)][:DRAFT_PROMPTS, :length]
    expected = expect_drafting(test.top1_agreement, latency)  # it decodes greedily
    ahead = max(1, 0 if expected is None else expected.tokens_ahead)
    with terminal.stage(f"drafting with {subject.name}", total=1) as advance:
        found = time_draft(
            subject.dense.model,
            subject.judged.model,
            prompts_BT.to(next(subject.judged.model.parameters()).device),
            new_tokens=workload.new_tokens,
            tokens_ahead=ahead,
        )
        advance(1, "")
    return found


def judge_text(subject: Subject, *, on_windows: Callable[[int], None]) -> Quality:
    """Judge a model on its text; ``on_windows`` is told how many windows it is about to read."""
    from seed.evaluation.perplexity import choose_micro_batch, compare_models, judge, logits_of, measure_losses
    from seed.models.anatomy import text_config

    stream, model = subject.stream, subject.judged.model
    device, compute = next(model.parameters()).device, logits_of(model)
    vocabulary = text_config(model).vocab_size
    micro_batch = choose_micro_batch(stream.tokens_NT.shape[1], vocabulary, device=device)

    def compute_watched(tokens_BT: "torch.Tensor") -> "torch.Tensor":
        on_windows(len(tokens_BT))
        return compute(tokens_BT)

    if subject.dense is None:
        losses = measure_losses(compute_watched, stream, micro_batch=micro_batch, device=device)
        return judge(losses, losses)
    theirs, [(losses, closeness)] = compare_models(
        logits_of(subject.dense.model), [compute_watched], stream, micro_batch=micro_batch, device=device
    )
    return judge(losses, theirs, closeness=closeness)


def time_subject(subject: Subject, command: str | None) -> Latency:
    """Time a model beside its dense model, or beside itself where it has none, by our workload or by the user's command.

    Raises:
        SeedError: the workload does not fit the model, or the command fails.
    """
    from seed import protocols
    from seed.evaluation.latency import measure_by_command, measure_pair, prepare_decoder
    from seed.models.anatomy import text_config

    judged, workload, config = subject.judged, subject.workload, text_config(subject.judged.model)
    beside, device = subject.dense or judged, protocols.name_device(next(judged.model.parameters()).device)
    if command is not None:
        directories = beside.directory, judged.directory
        return measure_by_command(
            command, *directories, structure=subject.name, device=device, repeats=workload.repeats
        )
    protocols.require_workload(workload.prompt_tokens, workload.new_tokens, config)
    return measure_pair(
        prepare_decoder(beside.model, workload, vocabulary=config.vocab_size),
        prepare_decoder(judged.model, workload, vocabulary=config.vocab_size),
        workload,
        structure=subject.name,
        device=device,
    )


def refuse_study(path: Path) -> None:
    """Refuse a study's folder."""
    study = StudyFolder(path)
    if study.plan.is_file() or study.stages_plan.is_file():
        models = sorted(place.parent for place in path.glob("**/models/*/config.json"))
        wanted = f"Name one or more of its models: {' '.join(map(str, models))}" if models else "It has no models yet"
        raise ModelError(f"{path}: is a study. {wanted}.")


def find_study(path: Path) -> StudyFolder | None:
    """The study that an exported model belongs to: studies/NAME/models/KEY, or unrecovered/KEY."""
    resolved = path.expanduser().resolve()
    parents = resolved.parents
    study = StudyFolder(parents[1]) if len(parents) > 1 and parents[0].name in EXPORTS else None
    return study if study is not None and study.plan.is_file() and resolved.is_dir() else None


def check_model(path: Path) -> None:
    """Check that an exported model is as it was written; in a study by the study's word, else by its own."""
    whole, study = path.resolve(), find_study(path)
    if study is None or whole.parent != study.models or not study.result(whole.name).is_file():
        refuse_damaged(path, place=str(path))
        return
    known = read_record(study.result(whole.name), DistillResult)
    if damage := find_damage(path, provenance_sha256=known.provenance_sha256):
        trial = known.trial_number
        command = "the same search again" if trial is None else f"python -m seed.distill {study.root} --trial {trial}"
        raise ModelError(f"{path}: damaged: {damage}. Write it again: {command}")


def show_judgement(
    terminal: Terminal,
    protocol: str,
    test: Quality,
    latency: Latency,
    size: Size,
    *,
    draft: DraftTiming | None,
    beside_dense: bool,
) -> None:
    """Print what was found."""
    terminal.say(f"text:       {protocol}; {test.tokens:,} tokens in {count_things(test.documents, 'document')}")
    ratio = f", ratio to dense {test.ppl_ratio:.4f} ± {test.ppl_ratio_standard_error:.4f}" if beside_dense else ""
    terminal.say(
        f"perplexity: {test.perplexity:.3f} (loss {test.loss:.4f} ± {test.standard_error:.4f} nats a token){ratio}"
    )
    if test.kl_divergence is not None and test.top1_agreement is not None:
        terminal.say(
            f"closeness:  KL {test.kl_divergence:.4f} nats a token, same top token in {test.top1_agreement:.1%}"
        )
    if test.acceptance is not None and (expected := expect_drafting(test.acceptance, latency)) is not None:
        measured = "" if draft is None else f"; measured, greedily: {describe_draft(draft)}"
        terminal.say(
            f"as a draft: the dense model accepts {test.acceptance:.1%} of what it samples, {describe_drafting(expected)}{measured}"
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


def show_tasks(terminal: Terminal, scores: Sequence[TaskScore], *, limit: int | None) -> None:
    """Print the scores of tasks; beside the dense model's where it ran them."""
    beside_dense = scores[0].dense_value is not None
    columns = ["task", "metric", "shots", "documents", "value", *(["dense", "difference"] if beside_dense else [])]
    arrows = {True: " ↑", False: " ↓", None: ""}
    rows = [
        [
            one.task,
            one.metric + arrows[one.higher_is_better],
            "" if one.num_fewshot is None else str(one.num_fewshot),
            f"{one.documents:,}",
            _spell(one.value, one.standard_error),
            _spell(one.dense_value, one.dense_standard_error),
            _spell(one.difference, one.difference_standard_error, sign="+"),
        ]
        for one in scores
    ]
    terminal.show_table(columns, [row[: len(columns)] for row in rows], num_words=2)
    some = "all documents" if limit is None else f"the first {count_things(limit, 'document')} of each task"
    paired = "; that of a difference is paired by document" if beside_dense else ""
    version = importlib.metadata.version("lm-eval")
    terminal.say(f"tasks:      lm-eval {version}, {some}, no chat template; ± is a standard error{paired}")


def _spell(value: float | None, error: float | None, *, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def evaluate(args: EvaluateCommand, terminal: Terminal) -> JudgedLine | JudgedLines:
    """Judge as told on the command line, say what was found, and return it as ``--json`` prints it."""
    tasks = read_tasks(args)
    for name in args.model:
        refuse_study(Path(name).expanduser())
        check_model(Path(name).expanduser())
    opened: dict[Path, Session] = {}
    lines = [evaluate_one(name, args, tasks, terminal, opened) for name in args.model]
    if len(lines) == 1:
        return lines[0]
    for line in write_table(list(map(list_judged, lines))):
        terminal.say(line, wrap=False)
    if len({line.protocol for line in lines}) > 1:
        terminal.say("PPLs are of different text or windows, as said above, and do not compare.")
    return JudgedLines(models=tuple(lines))


def evaluate_one(
    name: str, args: EvaluateCommand, tasks: "TaskSet | None", terminal: Terminal, opened: "dict[Path, Session]"
) -> JudgedLine:
    """Judge one model, and say what was found."""
    study = find_study(Path(name)) if args.test_text is None else None
    if args.draft and study is None:
        raise ModelError(
            f"--draft: {name} is judged alone{'' if args.test_text is None else ', since --test-text names another text'}, and a draft is "
            "one of a dense model. Give a model of a study, such as studies/NAME/models/KEY, on the study's own text, or leave --draft out."
        )
    subject = open_alone(name, args, terminal) if study is None else open_in_study(Path(name), study, args, opened)
    return judge_subject(name, subject, args, tasks=tasks, terminal=terminal)


def list_judged(line: JudgedLine) -> dict[str, str | None]:
    """Return a model's row in the table of several."""
    return {
        "model": Path(line.model).name,
        "PPL": None if line.ppl is None else format_number(line.ppl, places=2),
        "PPL to dense": None
        if line.ppl_ratio is None
        else format_interval(read_excess(line.ppl_ratio), "+,.1f", unit=" %"),
        "latency": f"{line.latency_ms:,.1f} ms",
        "speed": None if line.latency_ratio is None else f"{1 / (line.latency_ratio.value or 1):.2f}x",
        "size": format_bytes(line.weight_bytes),
    }


def read_tasks(args: EvaluateCommand) -> "TaskSet | None":
    """Open the tasks that the command line names, with their data, before anything that takes long.

    Raises:
        SeedError: they cannot be run as asked.
    """
    args.check_tasks()
    if not args.tasks:
        return None
    quiet_libraries()
    from seed.evaluation.tasks import open_tasks

    return open_tasks(
        args.tasks,
        include_path=args.include_path,
        limit=args.task_limit,
        batch=args.task_batch,
        allow_unsafe=args.confirm_unsafe_code,
    )


def main() -> None:
    """Read the command line and judge."""
    words = vars(make_parser(EvaluateCommand).parse_args())
    args = EvaluateCommand(**words | {"model": tuple(words["model"])}, given=frozenset(words))
    answer(functools.partial(evaluate, args), as_json=args.json)


if __name__ == "__main__":
    run_command(main)
