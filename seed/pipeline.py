"""One pass, top to bottom: plan, open, latency, search, frontier, distill, export, report.

Everything finished is in the study's folder, which this process alone writes, so that another pass goes on from there.
What each step does is its own module's business; where the model is run, the executor's.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import msgspec
import torch
from optuna import Study

from seed import cost, protocols, resolve, sessions, study_dir, time_budget
from seed.cli import quiet_libraries
from seed.clock import Clock, TimeIsUpError
from seed.config import StudyConfig, known
from seed.console import Terminal
from seed.cost import Estimator, Shape
from seed.errors import ModelError, StudyError
from seed.evaluation.latency import pool_dense
from seed.evaluation.tasks import TaskSet, open_asked
from seed.evaluator import InProcess, Proofs, open_executor
from seed.evidence import StudyRecord
from seed.executor import Executor
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import measure_size
from seed.models.loader import Teacher
from seed.models.provenance import describe_original
from seed.optimize.frontier import Limits, select_frontier
from seed.optimize.space import contains
from seed.optimize.storage import open_storage
from seed.optimize.study import open_study
from seed.optimize.trials import StorageMismatchError, Trials
from seed.plans import SearchPlan, read_plan
from seed.proxy.sweep import ScoreCache
from seed.records import DenseResult, Frontier, FrontierMember, SearchSpace
from seed.reporting.wording import count_things
from seed.results import StudyResult
from seed.scores import ScoreStore
from seed.sessions import Session
from seed.speed import Speed
from seed.stages import (
    baselines,
    budgets,
    finals,
    judging,
    latency_table,
    publishing,
    searching,
    students,
    study_record,
)
from seed.stages.latency_table import LatencyTable
from seed.stages.students import Member
from seed.study_dir import StudyFolder

STEPS = ("proofs", "latency", "search", "dense", "baselines", "distill")  # of a pass, for people who watch


def run(settings: StudyConfig, terminal: Terminal, *, began: float) -> StudyRecord:
    """Run the whole pass, or what is left of it. ``began``: ``time.monotonic()`` then."""
    settings = resolve.resolve_config(settings)
    study = StudyFolder(settings.studies_dir / resolve.name_study(settings))
    quiet_libraries()
    study_dir.require_writable(study.root)
    if study.stages_plan.exists() or StudyFolder(study.root / "stage-1").plan.exists():
        raise StudyError(
            f"{study.root}: holds a staged search. Repeat it with --stages, or take another name with --study NAME."
        )
    device = read_plan(study).protocol.device if study.plan.exists() else None
    tasks = open_asked(settings) if settings.tasks else {}
    with contextlib.ExitStack() as held, open_executor(settings, say=terminal.say, device=device) as executor:
        is_new = not study.root.exists()
        if not is_new:  # else it is made once there is something to write
            held.enter_context(study_dir.lock(study_dir.create(study.root)))
        clock = Clock(study, began=began)
        session, filled, parts = open_session(settings, executor, study, terminal)
        plan, filled = plan_search(filled, executor, session, terminal, parts=parts, clock=clock)
        if is_new:
            held.enter_context(study_dir.lock(study_dir.create(study.root)))
            if study.plan.exists():
                raise StudyError(
                    f"{study.root}: another process began this study meanwhile. Run the same command again."
                )
        with ScoreStore(study.scores) as store:
            held.callback(clock.save)
            record = Pipeline(terminal, filled, executor, session, plan, store, clock, tasks=tasks).run()
        is_done = len(record.distilled) >= len(record.frontier.members) * settings.distill
        if is_done or not clock.has_room(0):
            study_record.save_finished(study, settings, model=session.teacher.directory)
        return record


def open_session(
    settings: StudyConfig, executor: Executor, study: StudyFolder, terminal: Terminal
) -> tuple[Session, StudyConfig, tuple[Shape, Speed] | None]:
    """Open model and text, and let evaluators have them; return the settings too, filled by the model's size and the time.

    And the model's timed parts, where evaluators work on such a device as this process.
    """
    found: list[tuple[Shape, Speed]] = []
    terminal.say(f"opening {settings.model}")
    if (said := describe_original(settings.model)) is not None:
        terminal.say(said)
    device = executor.device if isinstance(executor, InProcess) else torch.device("cpu")

    def fit(filled: StudyConfig, original: protocols.Original, teacher: Teacher, anatomy: Anatomy) -> StudyConfig:
        if study.plan.exists():
            return time_budget.keep_numbers(filled, read_plan(study))
        if device.type != executor.reference.type:
            return filled
        shape, speed = cost.measure_parts(
            anatomy,
            whole=anatomy.model,
            window_tokens=known(filled.window_tokens),
            gains=original.gains,
            dtype=teacher.dtype,
            stored_dtype=teacher.stored_dtype,
            for_gpu=device.type == "cuda",
            trains=filled.trains_all,
        )
        found.append((shape, speed))
        return time_budget.fit_opened(filled, original, shape=shape, speed=speed)

    session, filled = sessions.open_for_search(
        settings, study=study, device=device, reference=executor.reference, terminal=terminal, fit=fit
    )
    for note in session.teacher.notes:
        terminal.say(f"{settings.model}: {note}")
    executor.start(session, say=terminal.say)
    return session, filled, found[0] if found else None


def plan_search(
    settings: StudyConfig,
    executor: Executor,
    session: Session,
    terminal: Terminal,
    *,
    parts: tuple[Shape, Speed] | None,
    clock: Clock,
) -> tuple[SearchPlan, StudyConfig]:
    """Say what the search will do and take, and refuse what cannot end well; nothing is written yet.

    Returns the settings too, with what there is time for.

    Raises:
        SeedError: a study of another plan lies there, or memory or disk do not suffice.
    """
    terminal.say("timing its parts")
    study, protocol, num_workers = session.folder, session.protocol, executor.num_evaluators
    shape, speed = parts or executor.call("measure_parts", trains=settings.trains_all)
    estimator = Estimator(protocol=protocol, shape=shape, speed=speed)
    if not study.plan.exists():
        settings = time_budget.choose_time(settings, estimator) if parts is None else settings
        settings = time_budget.fit_work(settings, estimator, spent=clock.spent, num_workers=num_workers)
    plan = estimator.draft_plan(settings, name=study.name)
    if study.plan.exists():
        plan = study_record.continue_or_replace(study, plan, say=terminal.say)
        plan = protocols.settle_trials(plan, settings)
    estimate = estimator.estimate_cost(
        plan, distill=settings.distill, is_tuned=settings.tunes_rate, num_workers=num_workers
    )
    timed = time_budget.describe_time(settings, estimator, plan, estimate, spent=clock.spent)
    for line in [*cost.describe_work(plan, estimate, num_workers=num_workers), *timed]:
        terminal.say(line)
    if plan.time is not None:
        clock.seconds = plan.time
        clock.search_end = time_budget.end_search(dataclasses.replace(settings, time=plan.time), estimate)
    is_cpu = protocol.device == "cpu"
    cost.require_resources(
        estimate,
        root=study.root,
        free_bytes=executor.call("measure_free_bytes"),
        device="this machine" if is_cpu else protocol.device,
        num_workers=executor.most_on_one_node if is_cpu else 1,
    )
    return plan, settings


class Pipeline:
    """The steps of a pass over one study, whose folder is ours to write, and what they hand on."""

    def __init__(
        self,
        terminal: Terminal,
        settings: StudyConfig,
        executor: Executor,
        session: Session,
        plan: SearchPlan,
        store: ScoreStore,
        clock: Clock,
        *,
        tasks: Mapping[str, TaskSet],
    ) -> None:
        """``tasks``: opened, by the names that they were asked by."""
        self.terminal, self.settings, self.executor, self.tasks = terminal, settings, executor, tasks
        self.session, self.study, self.plan, self.store = session, session.folder, plan, store
        self.clock = clock

    def run(self) -> StudyRecord:
        """Prove, measure, search, select, distill and report."""
        study, terminal = self.study, self.terminal
        if study.plan.exists():
            terminal.say(f"continuing the study in {study.root}")
        study_dir.write_record(study.plan, self.plan)
        opened = self.open_optuna()
        publishing.announce_search(study, opened, self.plan, on_warning=terminal.say)
        study_dir.write_record(study.environment, self.executor.call("describe_environment"))
        self.cache = ScoreCache(self.prove().dense_validation, self.store.read_rows(), place=self.store.path)
        self.store.keep([self.cache.describe_dense()])
        self.scoring = searching.Scoring(self.executor, self.store, self.cache)
        self.table = self.measure_latencies()
        space = latency_table.bound_space(self.session, self.table.table, self.limits)
        self.trials = self.open_trials(opened, space)
        judges_first = self.settings.eval_command is not None  # which may fail: rather before hours of search
        if judges_first:
            self.judge_dense()
        self.score_candidates()
        if not judges_first:
            self.judge_dense()
        frontier = self.choose_frontier()
        self.compare_baselines(frontier)
        if self.settings.distill:
            self.distill(frontier)
        return self.refresh_report().record

    def begin(self, step: str) -> None:
        """Say at which step of the pass it is."""
        self.clock.save()
        self.terminal.begin_step(step, of=STEPS if self.settings.distill else STEPS[:-1])

    def open_optuna(self) -> Study:
        """Open the Optuna study that proposes and shows, where its storage is.

        Raises:
            StudyError: the storage cannot be opened, or shows another study of this name.
        """
        return open_study(
            open_storage(self.settings.storage, journal=self.study.journal),
            name=self.plan.name,
            proxy=self.session.protocol.proxy,
            fingerprint=self.plan.fingerprint,
            owner=None if self.settings.storage is None else self.store.number,
        )

    @property
    def limits(self) -> Limits:
        """The bounds that were asked for, as constraints of the study."""
        settings = self.settings
        return Limits(
            max_ppl_ratio=settings.max_ppl_ratio,
            max_latency_ratio=settings.max_latency_ratio,
            max_memory_bytes=settings.max_memory,
            cached_tokens=self.session.protocol.cached_tokens,
        )

    def open_trials(self, opened: Study, space: SearchSpace) -> Trials:
        """The trials of the study; a journal that is not what the score store says is made anew from it.

        Raises:
            StudyError: a database is not what the store says.
        """
        protocol, settings, journal = self.session.protocol, self.settings, self.study.journal
        make = functools.partial(
            Trials,
            space=space,
            store=self.store,
            proxy=protocol.proxy,
            limits=self.limits,
            retry_skipped=not settings.screen,
        )
        try:
            return make(opened)
        except StorageMismatchError:
            if settings.storage is not None:
                raise
        journal.unlink(missing_ok=True)
        self.terminal.say(f"{journal}: is not what {self.store.path.name} says, and is made anew from it")
        return make(self.open_optuna())

    def prove(self) -> Proofs:
        """Prove on this very model that cutting, saving, reloading and scoring are right."""
        self.begin("proofs")
        with self.terminal.stage("proofs", total=3) as advance:
            proofs: Proofs = self.executor.call("prove", on_progress=advance)
        if proofs.fault and self.session.protocol.proxy == "closed-form":
            raise ModelError(f"{proofs.fault}. Use --proxy short-distillation with this model.")
        if proofs.fault:
            self.terminal.say(f"{proofs.fault}: this study does without closed form")
            self.session = dataclasses.replace(self.session, gains=None)
            self.executor.distrust_closed_form()
            self.plan = msgspec.structs.replace(self.plan, covers_space=False)
        self.plan = msgspec.structs.replace(self.plan, trusts_closed_form=not proofs.fault)
        study_dir.write_record(self.study.plan, self.plan)
        return proofs

    def measure_latencies(self) -> LatencyTable:
        """Open the latency table, with each depth of the space timed once where that is needed first; else when it is met."""
        space, measure = self.session.protocol.space, functools.partial(self.executor.call, "measure_latency")
        table = LatencyTable(self.session, measure=measure, say=self.terminal.say)
        is_needed = self.settings.max_latency_ratio is not None or self.settings.eval_command is not None
        if not is_needed and space.size > self.plan.trials:
            return table
        self.begin("latency")
        with self.terminal.stage("latency", total=space.max_dropped - space.min_dropped + 1) as advance:
            table.measure_depths(space, on_structure=lambda structure: advance(1, structure))
        return table

    def describe_dense(self) -> DenseResult:
        """What is known of the original while candidates are scored: all but its test text, which waits for the end."""
        anatomy, stored_dtype = self.session.anatomy, self.session.teacher.stored_dtype
        return judging.describe_dense(
            self.cache.dense,
            pool_dense(self.table.measured.values()),
            size=measure_size(anatomy.model, dtype=stored_dtype),
        )

    def judge_dense(self) -> None:
        """Judge the original on validation and test text, unless it was."""
        self.begin("dense")
        path = self.study.dense
        with self.terminal.stage("dense model", total=1) as advance:
            dense = study_dir.read_record(path, DenseResult) if path.exists() else None
            if dense is None:
                dense = self.executor.call("judge_dense", pool_dense(self.table.measured.values()))
                study_dir.write_record(path, dense)
            directory = self.session.teacher.directory
            judging.score_for_user(dense, self.settings.eval_command, directory=directory, path=path)
            advance(1, "")

    def score_candidates(self) -> None:
        """Search."""
        self.begin("search")
        terminal, protocol = self.terminal, self.session.protocol

        def prepare() -> None:
            if protocol.proxy == "short-distillation":
                self.store_states(steps=protocol.short_steps, rng_seeds=[protocol.rng_seed])

        live = publishing.LiveReport(
            self.study,
            self.trials.study,
            select=self.select_members,
            describe_dense=self.describe_dense,
            on_warning=terminal.say,
        )
        self.trials.listeners.append(lambda record: live.hear())
        try:
            if self.trials.num_complete:
                self.clock.check_search()
            searching.score_space(
                terminal,
                self.scoring,
                self.table,
                self.trials,
                self.plan,
                self.settings,
                prepare=prepare,
                check=self.clock.check_search,
            )
        except TimeIsUpError:
            terminal.say("  the search's share of the time is spent")

    def choose_frontier(self) -> Frontier:
        """Write down what goes on to distillation."""
        space, frontier = self.trials.space, self.select_members()
        while self.session.has_parts and self.table.time_predicted([one.evaluation for one in frontier.members]):
            frontier = self.select_members()
        study_dir.write_record(self.study.frontier, frontier)
        scored, num_members = (
            f"{frontier.num_scored:,} of {count_things(space.size, 'candidate')}",
            len(frontier.members),
        )
        self.terminal.say(f"scored {scored}; {num_members} {'goes' if num_members == 1 else 'go'} on")
        return frontier

    def select_members(self) -> Frontier:
        """Choose what is worth distilling of what is scored."""
        space = self.trials.space
        return select_frontier(
            study_record.use_measured(
                [trial for trial in self.store.read_trials() if contains(space, trial.evaluation.candidate)],
                self.table.measured,
            ),
            proxy=self.session.protocol.proxy,
            size=self.settings.frontier_size,
            space=space,
            load_losses=study_record.read_losses(self.study),
            limits=self.limits,
        )

    def compare_baselines(self, frontier: Frontier) -> None:
        """Play simpler ways to choose on the search's own scores, and write down what the search added."""
        self.begin("baselines")
        space = self.trials.space
        with self.terminal.stage("simpler ways to choose", total=len(baselines.BASELINES)) as advance:
            if self.plan.allows_singles(space):
                self.scoring.score_singles(space, recovers=self.session.gains is not None)
            gain, rows = self.executor.call(
                "compare_baselines",
                space,
                self.store.read_trials(),
                rows=[row for known in self.cache.rows.values() for row in known.values()],
                plan=self.plan,
                solver=searching.name_solver(self.plan, self.settings, space, frontier),
                on_progress=advance,
            )
            self.scoring.keep(rows)
            study_dir.write_record(self.study.gain, gain)

    def store_states(self, *, steps: int, rng_seeds: Sequence[int]) -> None:
        """Compute the dense model's last hidden states for distillations of so many steps, once for all evaluators."""
        if not budgets.uses_stored_states(self.session):
            return
        total = len(budgets.list_windows(self.session, steps=steps, rng_seeds=rng_seeds))
        with self.terminal.stage("dense model's states", total=total) as advance:  # windows of text
            is_stored = self.executor.store_states(steps=steps, rng_seeds=rng_seeds, on_progress=advance)
        if not is_stored:
            self.terminal.say("  they would take too much disk: the dense model runs in every step instead")

    def distill(self, frontier: Frontier) -> None:
        """Distill and export every member; the learning rate is tuned on the hardest first."""
        self.begin("distill")
        terminal, study, plan, session = self.terminal, self.study, self.plan, self.session
        ordered = sorted(frontier.members, key=self.weigh) if self.plan.time is not None else frontier.members
        members = [finals.make_member(one.evaluation, one.trial_number) for one in ordered]
        if not all(study.result(member.key).exists() for member in members):
            self.refresh_report(is_running=True)  # to look at meanwhile
        hardest = min(frontier.members, key=lambda member: (member.evaluation.size.num_params, member.rank))
        rng_seeds = finals.list_rng_seeds(session, plan.replicas)
        self.store_states(steps=session.protocol.count_steps(plan.distill_tokens), rng_seeds=rng_seeds)
        rate = self.choose_learning_rate(members[list(ordered).index(hardest)])
        if plan.width_baseline:
            _, widths = study_record.read_results(study)
            known_latencies = {result.key: result.latency for result in widths}
            candidates = [member.candidate for member in members]
            members += self.executor.call("make_width_baselines", candidates, known=known_latencies)
        results = finals.distill_members(
            self.executor,
            session,
            members,
            students.Budget(distill_tokens=plan.distill_tokens, learning_rate=rate, rng_seeds=rng_seeds),
            terminal=terminal,
            store=self.store,
            eval_command=self.settings.eval_command,
            clock=self.clock,
        )
        if len(results) < len(members):
            terminal.say(
                f"  the time is spent, and {count_things(len(members) - len(results), 'model')} not distilled: give more "
                "--time, or python -m seed.distill"
            )
        if self.settings.bits:
            self.judge_packed(self.settings.bits)
        if self.tasks or self.study.tasks.is_file():  # what was bound before may be free now
            models, _ = study_record.read_results(self.study)
            judging.judge_by_tasks(session, models, self.tasks, floors=self.settings.floors, say=terminal.say)

    def judge_packed(self, bits: Sequence[int]) -> None:
        """Judge the original and all distilled models with weights of fewer bits, too."""
        models, _ = study_record.read_results(self.study)
        dense = study_dir.read_record(self.study.dense, DenseResult)
        with self.terminal.stage("fewer bits", total=(1 + len(models)) * len(bits)) as advance:
            judging.pack_and_judge(self.session, dense, models, bits, on_judged=advance)

    def weigh(self, member: FrontierMember) -> tuple[int, float]:
        """What orders members by worth: the best of its depth first, and the fastest for its perplexity."""
        evaluation = member.evaluation
        return member.rank, evaluation.qualities[self.session.protocol.proxy].ppl_ratio * evaluation.latency.ratio

    def choose_learning_rate(self, hardest: Member) -> float:
        """The peak rate of all members: as given, else tuned on a tenth of the budget of the hardest."""
        factor, given = self.settings.chosen_recovery.rate_factor, self.settings.learning_rate
        rates = (given,) if given else tuple(factor * rate for rate in known(self.settings.learning_rates))
        if len(rates) == 1:
            return rates[0]
        tokens = self.plan.distill_tokens
        steps = self.session.protocol.count_steps(tokens // students.TUNING_SHARE)
        with self.terminal.stage("learning rate", total=len(rates) * steps, is_share=True) as advance:
            return students.choose_learning_rate(
                self.study,
                hardest,
                rates=rates,
                distill_tokens=tokens,
                try_it=functools.partial(
                    self.executor.call,
                    "try_learning_rate",
                    hardest,
                    distill_tokens=tokens,
                    rows=self.cache.list_rows([hardest.candidate]),
                    on_progress=advance,
                ),
            )

    def refresh_report(self, *, is_running: bool = False) -> StudyResult:
        """Write the report, and the same into Optuna Dashboard."""
        return publishing.refresh_report(
            self.study, opened=self.trials.study, on_warning=self.terminal.say, is_running=is_running
        )
