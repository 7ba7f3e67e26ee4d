"""One pass, top to bottom: plan, open, latency, search, frontier, distill, export, report.

Everything finished is in the study's folder, which this process alone writes, so that another pass goes on from there.
What each step does is its own module's business; where the model is run, the executor's.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch
from optuna import Study

from seed import cost, planning, resolve, sessions, study_dir
from seed.config import StudyConfig, known
from seed.console import Terminal, format_seconds
from seed.errors import ModelError, StudyError
from seed.evaluation.latency import pool_dense
from seed.evaluation.perplexity import DocumentLosses
from seed.evaluator import Proofs
from seed.evidence import StudyRecord
from seed.executor import Executor, InProcess, open_executor
from seed.models.start import describe_original
from seed.optimize.frontier import select_frontier
from seed.optimize.space import contains, drop_layers
from seed.optimize.storage import open_storage
from seed.optimize.study import Limits, open_study
from seed.optimize.trials import StorageMismatchError, Trials
from seed.plans import Environment, SearchPlan
from seed.proxy.sweep import ScoreCache
from seed.records import DenseResult, DistillResult, Frontier, SearchSpace, TrialRecord
from seed.reporting.summary import show_result
from seed.reporting.wording import count_things
from seed.scores import ScoreStore, list_files
from seed.sessions import Session
from seed.stages import budgets, finals, judging, latency_table, publishing, rivals, searching, students, study_record
from seed.stages.latency_table import LatencyTable
from seed.stages.students import Member
from seed.stages.study_record import read_losses
from seed.study_dir import StudyFolder

STEPS = ("proofs", "latency", "dense", "search", "rivals", "distill")  # of a pass, for people who watch


@dataclass(kw_only=True)
class Pass:
    """What the steps of one pass hand on."""

    terminal: Terminal
    settings: StudyConfig
    executor: Executor
    session: Session
    plan: SearchPlan
    environment: Environment

    @property
    def study(self) -> StudyFolder:
        """The study's folder."""
        return self.session.folder

    def begin(self, step: str) -> None:
        """Say at which step of the pass it is."""
        self.terminal.begin_step(step, of=STEPS if self.settings.distill else STEPS[:-1])


def run(settings: StudyConfig, terminal: Terminal) -> StudyRecord:
    """Run the whole pass, or what is left of it.

    Raises:
        SeedError: anything a user can mend.
    """
    settings = resolve.resolve_config(settings)
    study = StudyFolder(settings.studies_dir / resolve.name_study(settings))
    planning.quiet_libraries()
    load = cost.describe_load()
    study_dir.require_writable(study.root)
    if study.stages_plan.exists() or StudyFolder(study.root / "stage-1").plan.exists():
        raise StudyError(
            f"{study.root}: holds a staged search. Repeat it with --stages, or take another name with --study NAME."
        )
    with (
        contextlib.ExitStack() as held,
        open_executor(settings, say=terminal.say, device=read_device(study)) as executor,
    ):
        is_new = not study.root.exists()
        if not is_new:  # else it is made once there is something to write
            study_dir.create(study.root)
            held.enter_context(study_dir.lock(study))
        session, filled = open_session(settings, executor, study, terminal)
        now = plan_search(filled, executor, session, terminal, load=load)
        if is_new:
            study_dir.create(study.root)
            held.enter_context(study_dir.lock(study))
            if study.plan.exists():
                raise StudyError(
                    f"{study.root}: another process began this study meanwhile. Run the same command again."
                )
        with ScoreStore(study.scores) as store:
            record = search(now, store)
        if len(record.distilled) >= len(record.frontier.members) * settings.distill:
            study_record.save_finished(study, settings, model=session.teacher.directory)
        return record


def read_device(study: StudyFolder) -> str | None:
    """The name of the device on which a study was begun, or None."""
    return study_dir.read_record(study.plan, SearchPlan).identity.get("device") if study.plan.exists() else None


def open_session(
    settings: StudyConfig, executor: Executor, study: StudyFolder, terminal: Terminal
) -> tuple[Session, StudyConfig]:
    """Open model and text, and let evaluators have them."""
    terminal.say(f"opening {settings.model}")
    if (said := describe_original(settings.model)) is not None:
        terminal.say(said)
    device = executor.device if isinstance(executor, InProcess) else torch.device("cpu")
    session, filled = sessions.open_for_search(settings, study=study, device=device, reference=executor.reference)
    for note in session.teacher.notes:
        terminal.say(f"{settings.model}: {note}")
    executor.start(session, say=terminal.say)
    return session, filled


def plan_search(
    settings: StudyConfig,
    executor: Executor,
    session: Session,
    terminal: Terminal,
    *,
    load: str | None,
) -> Pass:
    """Say what the search will do and take, and refuse what cannot end well; nothing is written yet.

    Raises:
        SeedError: a study of another plan lies there, or memory or disk do not suffice.
    """
    environment, shape, speed, free_bytes = executor.call("describe")
    study, protocol, count = session.folder, session.protocol, executor.num_evaluators
    plan = cost.draft_plan(settings, protocol, name=study.name, shape=shape, speed=speed)
    if study.plan.exists():
        plan = continue_or_replace(study, plan, say=terminal.say)
        plan = cost.settle_trials(plan, settings, protocol)
    estimate = cost.estimate_cost(shape, protocol, plan, speed, distill=settings.distill)
    for line in cost.describe_plan(protocol, plan, estimate, num_workers=count):
        terminal.say(line)
    if load is not None:
        terminal.say(load)
    cost.require_resources(
        estimate,
        root=study.root,
        free_bytes=free_bytes,
        device="this machine" if protocol.device == "cpu" else protocol.device,
        num_workers=executor.most_on_one_node if protocol.device == "cpu" else 1,
    )
    return Pass(
        terminal=terminal,
        settings=settings,
        executor=executor,
        session=session,
        plan=plan,
        environment=environment,
    )


def continue_or_replace(study: StudyFolder, wanted: SearchPlan, *, say: Callable[[str], None]) -> SearchPlan:
    """The plan to go on with where a search was planned before; one of another plan gives way where it holds no score.

    Raises:
        StudyError: it holds some, or is shown in a database, which keeps its first plan.
    """
    found = study_dir.read_record(study.plan, SearchPlan)
    try:
        return planning.continue_plan(found, wanted, place=study.root)
    except StudyError:
        if found.storage is not None or wanted.storage is not None or holds_score(study):
            raise
    shutil.rmtree(study.work, ignore_errors=True)
    # the plan goes last, so that who is stopped here begins here again
    for path in (study.journal, study.latency, study.dense, *list_files(study.scores), study.plan):
        path.unlink(missing_ok=True)
    say(f"{study.root}: held a search of another plan that ended before its first score; this one replaces it")
    return wanted


def holds_score(study: StudyFolder) -> bool:
    """Is a candidate scored, or anything made of one?

    Raises:
        StudyError: its scores cannot be read.
    """
    if study.frontier.exists() or any(place.exists() for place in (study.models, study.distilled, study.unrecovered)):
        return True
    if not study.scores.exists():
        return False
    with ScoreStore(study.scores, read_only=True) as store:
        return any(row.key != "dense" for row in store.read_rows()) or bool(store.read_trials())


def search(now: Pass, store: ScoreStore) -> StudyRecord:
    """Prove, measure, search, select and distill, in a folder that is ours to write."""
    study, plan, settings = now.study, now.plan, now.settings
    if study.plan.exists():
        now.terminal.say(f"continuing the study in {study.root}")
    study_dir.write_record(study.plan, plan)
    opened = open_optuna(now, store)
    publishing.announce_search(study, opened, plan, on_warning=now.terminal.say)
    study_dir.write_record(study.environment, now.environment)
    proofs = prove(now)
    table = measure_latencies(now)
    space = latency_table.bound_space(
        now.session, table.table, max_latency_ratio=settings.max_latency_ratio, max_memory=settings.max_memory
    )
    dense = judge_dense(now, table)
    book = open_cache(store, proofs.dense_validation)
    trials = open_trials(now, opened, space, store)
    opened = trials.study
    frontier = find_frontier(now, opened, trials, book, table)
    compare_rivals(now, trials, book, frontier)
    if settings.distill:
        distill(now, dense, frontier, opened, store, book)
    return finish(now.terminal, study, opened)


def open_optuna(now: Pass, store: ScoreStore) -> Study:
    """Open the Optuna study that proposes and shows, where its storage is.

    Raises:
        StudyError: the storage cannot be opened, or shows another study of this name.
    """
    return open_study(
        open_storage(now.settings.storage, journal=now.study.journal),
        name=now.plan.name,
        proxy=now.session.protocol.proxy,
        fingerprint=now.plan.fingerprint,
        owner=None if now.settings.storage is None else store.identity,
    )


def open_trials(now: Pass, opened: Study, space: SearchSpace, store: ScoreStore) -> Trials:
    """The trials of the study; a journal that is not what the score store says is made anew from it.

    Raises:
        StudyError: a database is not what the store says.
    """
    proxy, limits = now.session.protocol.proxy, list_limits(now)
    try:
        return Trials(opened, space, store, proxy=proxy, limits=limits)
    except StorageMismatchError:
        if now.settings.storage is not None:
            raise
    now.study.journal.unlink(missing_ok=True)
    now.terminal.say(f"{now.study.journal}: is not what {store.path.name} says, and is made anew from it")
    return Trials(open_optuna(now, store), space, store, proxy=proxy, limits=limits)


def prove(now: Pass) -> Proofs:
    """Prove on this very model that cutting, saving, reloading and scoring are right.

    Raises:
        ModelError: this model is not understood well enough.
    """
    now.begin("proofs")
    with now.terminal.stage("proofs", total=2) as advance:
        proofs: Proofs = now.executor.call("prove", on_progress=advance)
    if proofs.fault and now.session.protocol.proxy == "closed-form":
        raise ModelError(f"{proofs.fault}. Use --proxy short-distillation with this model.")
    if proofs.fault:
        now.terminal.say(f"{proofs.fault}: this study does without closed form")
        now.session = sessions.without_closed_form(now.session)
        now.executor.distrust_closed_form()
        now.plan = msgspec.structs.replace(now.plan, covers_space=False)
    now.plan = msgspec.structs.replace(now.plan, trusts_closed_form=not proofs.fault)
    study_dir.write_record(now.study.plan, now.plan)
    return proofs


def measure_latencies(now: Pass) -> LatencyTable:
    """Time each depth of the space once beside the dense model."""
    now.begin("latency")
    space = now.session.protocol.space
    table = LatencyTable(now.session, measure=functools.partial(now.executor.call, "measure_latency"))
    with now.terminal.stage("latency", total=space.max_dropped - space.min_dropped + 1) as advance:
        table.measure_depths(space, on_structure=lambda structure: advance(1, structure))
    return table


def judge_dense(now: Pass, table: LatencyTable) -> DenseResult:
    """Judge the original on validation and test text, or read back that it was."""
    now.begin("dense")
    with now.terminal.stage("dense", total=1) as advance:
        dense = study_dir.read_record(now.study.dense, DenseResult) if now.study.dense.exists() else None
        if dense is None or dense.test_sums is None:
            dense = now.executor.call("judge_dense", pool_dense(table.table.values()))
            study_dir.write_record(now.study.dense, dense)
        dense = judging.score_dense_for_user(now.session, dense, now.settings.eval_command)
        advance(1, "")
    return dense


def open_cache(store: ScoreStore, dense: DocumentLosses) -> ScoreCache:
    """The scores that are known, beside the dense model's.

    Raises:
        StudyError: a score is of another text.
    """
    book = ScoreCache(dense, store.read_rows(), place=store.path)
    store.keep([book.describe_dense()])
    return book


def list_limits(now: Pass) -> Limits:
    """The bounds that were asked for, as constraints of the study."""
    protocol, settings = now.session.protocol, now.settings
    return Limits(
        max_ppl_ratio=settings.max_ppl_ratio,
        max_latency_ratio=settings.max_latency_ratio,
        max_memory_bytes=settings.max_memory,
        cached_tokens=(protocol.prompt_tokens + protocol.new_tokens) * protocol.latency_batch,
    )


def find_frontier(now: Pass, opened: Study, trials: Trials, book: ScoreCache, table: LatencyTable) -> Frontier:
    """Search, and write down what goes on to distillation."""
    now.begin("search")
    terminal, settings, space = now.terminal, now.settings, trials.space
    protocol = now.session.protocol

    def prepare() -> None:
        if protocol.proxy == "short-distillation":
            store_states(now, steps=protocol.short_steps, rng_seeds=[protocol.rng_seed])

    live = publishing.LiveReport(
        now.study,
        opened,
        select=lambda: select_members(now, space, trials.store.read_trials()),
        on_warning=terminal.say,
    )
    with trials.heard_by(lambda record: live.hear()):
        searching.score_space(
            terminal,
            now.executor,
            table,
            trials,
            book,
            now.plan,
            settings,
            rng_seed=protocol.rng_seed,
            prepare=prepare,
        )
    frontier = select_members(now, space, trials.store.read_trials())
    study_dir.write_record(now.study.frontier, frontier)
    solver = searching.name_solver(now.plan, settings, space, frontier)
    num_members = len(frontier.members)
    terminal.say(
        f"scored {frontier.num_scored:,} of {count_things(space.size, 'candidate')} ({solver}); {num_members} "
        f"{'goes' if num_members == 1 else 'go'} on"
    )
    return frontier


def select_members(now: Pass, space: SearchSpace, records: Sequence[TrialRecord]) -> Frontier:
    """Choose what is worth distilling of what is scored."""
    found = select_frontier(
        [record for record in records if contains(space, record.evaluation.candidate)],
        proxy=now.session.protocol.proxy,
        size=now.settings.frontier_size or planning.FRONTIER_SIZE,
        space_size=space.size,
        load_losses=read_losses(now.study),
        max_ppl_ratio=now.settings.max_ppl_ratio,
        max_latency_ratio=now.settings.max_latency_ratio,
    )
    return msgspec.structs.replace(found, space=space)


def compare_rivals(now: Pass, trials: Trials, book: ScoreCache, frontier: Frontier) -> None:
    """Play simpler ways to choose on the search's own scores, and write down what the search added."""
    now.begin("rivals")
    space = trials.space
    with now.terminal.stage("rivals", total=len(rivals.RIVALS)) as advance:
        if planning.allows_singles(now.plan, space):
            searching.score_singles(now.executor, trials.store, book, space, recovers=now.session.gains is not None)
        gain, rows = now.executor.call(
            "compare_rivals",
            space,
            trials.store.read_trials(),
            rows=[row for known in book.rows.values() for row in known.values()],
            plan=now.plan,
            solver=searching.name_solver(now.plan, now.settings, space, frontier),
            on_progress=advance,
        )
        searching.keep_rows(trials.store, book, rows)
        study_dir.write_record(now.study.gain, gain)


def store_states(now: Pass, *, steps: int, rng_seeds: Sequence[int]) -> None:
    """Compute the dense model's last hidden states for distillations of so many steps, once for all evaluators."""
    if not budgets.uses_stored_states(now.session):
        return
    total = len(budgets.list_windows(now.session, steps=steps, rng_seeds=rng_seeds))
    with now.terminal.stage("dense states", total=total) as advance:  # windows of text
        now.executor.store_states(steps=steps, rng_seeds=rng_seeds, on_progress=advance)


def distill(
    now: Pass, dense: DenseResult, frontier: Frontier, opened: Study, store: ScoreStore, book: ScoreCache
) -> None:
    """Distill and export every member; the learning rate is tuned on the hardest first."""
    now.begin("distill")
    terminal, study, plan, session = now.terminal, now.study, now.plan, now.session
    members = finals.list_members(frontier.members)
    if not all(study.result(member.key).exists() for member in members):
        publishing.refresh_report(
            study, opened=opened, on_warning=terminal.say, is_running=True
        )  # to look at meanwhile
    hardest = min(frontier.members, key=lambda member: (member.evaluation.size.num_params, member.rank))
    rng_seeds = finals.list_rng_seeds(session, plan.replicas)
    store_states(now, steps=students.count_steps(session, plan.distill_tokens), rng_seeds=rng_seeds)
    rate = choose_learning_rate(now, members[frontier.members.index(hardest)], book)
    if plan.width_baseline:
        members += list_baselines(now, members)
    budget = finals.Budget(distill_tokens=plan.distill_tokens, learning_rate=rate, rng_seeds=rng_seeds)
    finals.say_damaged(study, members, say=terminal.say)
    total = finals.count_all_work(session, members, budget)
    with terminal.stage("distill", total=total, is_share=True) as advance:
        results = finals.distill_members(
            now.executor,
            session,
            plan,
            dense,
            members,
            budget,
            store=store,
            eval_command=now.settings.eval_command,
            on_progress=advance,
            on_warning=terminal.say,
        )
    for result in results:
        terminal.say(
            f"  {result.key}: test PPL ratio {result.test.ppl_ratio:.4f} "
            f"(without recovery {result.test_unrecovered.ppl_ratio:.4f}"
            f"{', so recovery did not help' * (result.test.ppl_ratio >= result.test_unrecovered.ppl_ratio)}), "
            f"{format_seconds(result.seconds)}"
        )


def choose_learning_rate(now: Pass, hardest: Member, book: ScoreCache) -> float:
    """The peak rate of all members: as given, else tuned on a tenth of the budget of the hardest."""
    factor = now.settings.chosen_recovery.rate_factor
    given = now.settings.learning_rate
    rates = (given,) if given else tuple(factor * rate for rate in known(now.settings.learning_rates))
    if len(rates) == 1:
        return rates[0]
    tokens = now.plan.distill_tokens
    steps = students.count_steps(now.session, tokens // students.TUNING_SHARE)
    with now.terminal.stage("tuning", total=len(rates) * steps, is_share=True) as advance:
        rate = students.choose_learning_rate(
            now.study,
            hardest,
            rates=rates,
            distill_tokens=tokens,
            try_it=lambda rate: now.executor.call(
                "try_learning_rate",
                hardest,
                rate,
                distill_tokens=tokens,
                rows=book.list_rows([hardest.candidate]),
                on_progress=advance,
            ),
        )
    now.terminal.say(f"learning rate {rate:g}")
    return rate


def list_baselines(now: Pass, members: Sequence[Member]) -> list[Member]:
    """For each size among the members, all layers cut to that size in width, timed.

    Raises:
        ModelError: this family's widths cannot be cut.
    """
    whole = drop_layers(now.session.anatomy.num_layers, [])
    found = []
    for width in now.executor.call("plan_widths", [member.candidate for member in members]):
        known = now.study.result(width.key)
        latency = (
            study_dir.read_record(known, DistillResult).latency
            if known.exists()
            else now.executor.call("measure_width_latency", width)
        )
        found.append(Member(candidate=whole, latency=latency, width=width))
    return found


def finish(terminal: Terminal, study: StudyFolder, opened: Study) -> StudyRecord:
    """Write the report and print what matters."""
    record = publishing.refresh_report(study, opened=opened, on_warning=terminal.say)
    show_result(terminal, record, study=study, storage=publishing.spell_storage(record.plan, study))
    return record
