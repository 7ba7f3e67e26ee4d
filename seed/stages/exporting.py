"""Checkpoints that leave a study, or any model: what is cut, from which directory, and what is written beside the weights.

The weights themselves are copied from file to file by ``models.copying``. Nothing is trained, judged or loaded here.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from seed import __version__, study_dir
from seed.cli import spell_command
from seed.config import StudyConfig, list_presets
from seed.errors import ModelError, StudyError
from seed.models.copying import Cut, count_layers, plan_cut, write_cut
from seed.models.files import CARD, PROVENANCE, find_damage, refuse_damaged
from seed.models.loader import ModelSource, check_source, find_auto_class, find_licence, locate_checkpoint, reads_images
from seed.models.start import read_origin
from seed.models.stored import list_weights
from seed.plans import Protocol, SearchPlan
from seed.protocols import find_source, hash_weights, resolve_location
from seed.records import Candidate, DistillResult, TrialRecord, hash_text
from seed.reporting.card import OpenedBy, Raw, Score, write_raw_card, write_recipe
from seed.reporting.result_line import ExportLine
from seed.resolve import fill_from_files
from seed.stages import places, provenance
from seed.study_dir import StudyFolder

RECIPE = "mergekit.yml"
CURE = "Free some room, or choose another disk with --out DIRECTORY."


@dataclass(frozen=True, kw_only=True)
class Order:
    """A cut that is to be written: where the weights lie, which layers stay, and what card and provenance say of it."""

    source: ModelSource  # that is cut
    kept_layers: tuple[int, ...]  # by their index in the source
    candidate: Candidate  # by the original's indices
    model: str  # the original, as the user named it
    origin: Mapping[str, Any]  # the original, and what was cut before, as provenance has them
    licence: Mapping[str, str]
    command: str  # that writes it again
    recover: str | None = None  # the command that recovers it
    score: Score | None = None
    measured: Mapping[str, Any] = field(default_factory=lambda: {"metrics": {}})  # in a study, as provenance takes it


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What of an order is copied where, checked and ready to be written."""

    order: Order
    cut: Cut
    target: Path  # as the user named it
    documents: Mapping[str, str]
    is_there: bool  # it was written before


def plan_order(order: Order, target: Path) -> Copy:
    """Check all that can be checked before a byte is written.

    Raises:
        SeedError: weights are missing or damaged, the family is unfit, something else lies there, or there is no room.
    """
    place = places.find_place(target)
    source = locate_checkpoint(order.source).directory
    if places.overlap(source, place):
        raise ModelError(f"{target}: is, holds or lies in the model that is cut ({source}). Give another --out.")
    cut = plan_cut(source, order.kept_layers)
    recipe = write_recipe(
        str(source) if Path(order.source.location).is_dir() else order.source.location,
        revision=order.source.revision,
        kept_layers=order.kept_layers,
        dtype=cut.dtype,
    )
    documents = _write_documents(order, cut) | {RECIPE: recipe}
    is_there = places.is_written(place, json.loads(documents[PROVENANCE]), target=target)
    if not is_there:
        study_dir.require_room(
            places.find_parent(place), needed_bytes=cut.num_bytes, purpose="this checkpoint", cure=CURE
        )
    return Copy(order=order, cut=cut, target=target, documents=documents, is_there=is_there)


def write_copy(copy: Copy, *, on_bytes: Callable[[int], None]) -> ExportLine:
    """Write a cut checkpoint with its card, its provenance and its recipe, unless it is there. ``on_bytes`` is told of each piece.

    Raises:
        ResourceError: the disk does not take it.
    """
    order, cut, target = copy.order, copy.cut, copy.target
    if not copy.is_there:
        write_cut(cut, target.resolve(), documents=copy.documents, on_bytes=on_bytes)
    return ExportLine(
        path=str(target),
        base_model=order.origin["base_model"],
        base_revision=order.origin["base_revision"],
        num_layers=order.candidate.num_layers,
        kept_layers=order.candidate.kept_layers,
        dropped_layers=order.candidate.dropped_layers,
        is_recovered=False,
        num_params=cut.num_params,
        weight_bytes=cut.num_bytes,
        recipe=str(target / RECIPE),
        left_out=cut.left_out,
        ppl_ratio=None,
        unrecovered_ppl_ratio=None if order.score is None else order.score.quality.ppl_ratio,
        text=None if order.score is None else order.score.split,
    )


def find_recovered(
    study: StudyFolder, protocol: Protocol, trial: TrialRecord, distilled: Sequence[DistillResult]
) -> ExportLine:
    """Say where the distilled model of a trial lies.

    Raises:
        StudyError: it is not distilled.
    """
    candidate = trial.evaluation.candidate
    path = study.model(candidate.key)
    found = [result for result in distilled if result.candidate == candidate]
    cure = spell_command("seed.distill", {"trial": trial.number}, str(study.root))
    if not found:
        raise StudyError(
            f"--trial {trial.number}: {candidate.key} is not distilled. Distill it: {cure}; or add --no-recovery to write it as it "
            "was cut."
        )
    [result] = found
    if damage := find_damage(path, provenance_sha256=result.provenance_sha256):
        raise StudyError(f"{path}: damaged: {damage}. Write it again: {cure}")
    return ExportLine(
        path=str(path),
        base_model=protocol.location,
        base_revision=protocol.commit or protocol.revision,
        num_layers=candidate.num_layers,
        kept_layers=candidate.kept_layers,
        dropped_layers=candidate.dropped_layers,
        is_recovered=True,
        num_params=result.size.num_params,
        weight_bytes=result.size.weight_bytes,
        recipe=None,
        left_out=(),
        ppl_ratio=result.test.ppl_ratio,
        unrecovered_ppl_ratio=result.test_unrecovered.ppl_ratio,
        text="test",
    )


def copy_recovered(line: ExportLine, target: Path) -> ExportLine:
    """Copy a distilled model, unless it lies there already.

    Raises:
        SeedError: something else lies there, or there is no room.
    """
    place = places.find_place(target)
    source = Path(line.path)
    if places.overlap(source, place):
        raise ModelError(f"{target}: lies in the model itself. Give another --out.")
    if not places.is_written(place, json.loads((source / PROVENANCE).read_bytes()), target=target):
        study_dir.require_room(
            places.find_parent(place), needed_bytes=line.weight_bytes, purpose="this checkpoint", cure=CURE
        )
        with study_dir.explain_resource_errors(target), study_dir.replace_directory(place) as aside:
            for path in filter(Path.is_file, sorted(source.rglob("*"))):
                copy = aside / path.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
    return msgspec.structs.replace(line, path=str(target))


def order_trial(
    study: StudyFolder, plan: SearchPlan, protocol: Protocol, trial: TrialRecord, distilled: Sequence[DistillResult]
) -> Order:
    """Return the order for the candidate of a trial, cut from what the study's candidates are cut from.

    Raises:
        ModelError: weights changed since the study was planned.
    """
    candidate = trial.evaluation.candidate
    base = locate_base(study, protocol)
    source, kept = base, candidate.kept_layers
    if protocol.start is not None:
        source = ModelSource(location=protocol.start)
        before = read_origin(Path(protocol.start), place=f"{study.root}: its start {protocol.start}").candidate
        kept = tuple(before.kept_layers.index(layer) for layer in candidate.kept_layers)
        _require_same(Path(protocol.start), protocol.start_sha256, study)
    score = find_score(protocol, trial, distilled)
    metrics: dict[str, Any] = {"size": provenance.describe(trial.evaluation.size)}
    metrics["latency"] = provenance.describe(trial.evaluation.latency)
    if score is not None:
        metrics[score.split] = provenance.describe_quality(score.quality)
    words = (str(study.root),)
    return Order(
        source=source,
        kept_layers=kept,
        candidate=candidate,
        model=protocol.model,
        origin=provenance.describe_origin(protocol),
        licence=find_licence(base, named=protocol.license),
        command=spell_command("seed.export", {"trial": trial.number, "recovery": False}, *words),
        recover=spell_command("seed.distill", {"trial": trial.number}, *words),
        score=score,
        measured={"metrics": metrics, "study": plan.name, "trial": trial.number, "streams": protocol.streams},
    )


def order_layers(model: str, kept_layers: Sequence[int], *, revision: str | None) -> Order:
    """Return the order for layers of any model: a directory, a hub id, or a preset's name.

    Of a model of the hub the commit is noted. Weights of a directory are not hashed: that reads all of them once more, at
    0.9 GB/s on a machine that copies 0.2 to 1.2 GB/s; sizes and times of their files are, to know them again.

    Raises:
        ModelError: no such model, or one that Seed cut before and whose seed.json is damaged.
    """
    settings = fill_from_files(StudyConfig(model=model, revision=revision))
    source = find_source(settings)
    location = source.location
    if location == "demo":
        source = replace(source, location=str(resolve_location(location)))
    check_source(source, presets=list_presets())
    located = locate_checkpoint(source)
    directory = located.directory
    source = replace(source, revision=located.commit)  # all else is read from the same commit
    origin: dict[str, Any] = {
        "base_model": location,
        "base_revision": source.revision,
        "base_sha256": None,
        "source_stamp": None if located.commit else stamp_weights(directory),
        "start": None,
    }
    earlier = None
    if (directory / PROVENANCE).is_file():  # it was cut before: layers go by the original's indices
        earlier = read_origin(directory, place=str(directory))
        if earlier.is_narrow:
            raise ModelError(
                f"{directory}: is cut in width, and no longer made of the original's layers. Cut the original."
            )
        origin = {
            "base_model": earlier.base_model,
            "base_revision": earlier.base_revision,
            "base_sha256": earlier.base_sha256,
            "source_stamp": origin["source_stamp"],
            "start": {"path": str(directory), "sha256": None, "tokens": earlier.tokens},
        }
    candidate = _compose(directory, kept_layers, None if earlier is None else earlier.candidate)
    if len(kept_layers) == (candidate.num_layers if earlier is None else len(earlier.candidate.kept_layers)):
        raise ModelError(
            f"--keep: names all {len(kept_layers)} layers of {model}, and nothing would be cut. Leave some out."
        )
    words = {"keep": ",".join(map(str, kept_layers)), "revision": source.revision, "out": "DIRECTORY"}
    refuse_damaged(directory, place=str(directory))
    return Order(
        source=source,
        kept_layers=tuple(kept_layers),
        candidate=candidate,
        model=Path(model if earlier is None else earlier.base_model).name,
        origin=origin,
        licence=find_licence(source, named=settings.license),
        command=spell_command("seed.export", words, model),
    )


def locate_base(study: StudyFolder, protocol: Protocol) -> ModelSource:
    """Where the original of a study lies: a directory whose weights are those that were searched, or a commit of the hub.

    Raises:
        ModelError: its weights changed since.
    """
    if protocol.weights_sha256 is None:
        return ModelSource(location=protocol.location, revision=protocol.commit or protocol.revision)
    path = resolve_location(protocol.location)
    if protocol.start is None:
        _require_same(path, protocol.weights_sha256, study)
    return ModelSource(location=str(path))


def find_score(protocol: Protocol, trial: TrialRecord, distilled: Sequence[DistillResult]) -> Score | None:
    """How the candidate was judged without recovery: on test text where it was distilled, else on validation text."""
    candidate = trial.evaluation.candidate
    for result in distilled:
        if result.candidate == candidate and protocol.start is None:  # else test text saw a cut of the original
            return Score(quality=result.test_unrecovered, split="test", source=protocol.streams["test"].source)
    quality = trial.evaluation.qualities.get("none")
    if quality is None or not math.isfinite(quality.loss):
        return None
    return Score(quality=quality, split="validation", source=protocol.streams["validation"].source)


def _write_documents(order: Order, cut: Cut) -> dict[str, str]:
    """The card and the provenance of a cut, by their file's name."""
    origin, start = order.origin, order.origin["start"] or {"path": None, "tokens": 0}
    raw = Raw(
        model=order.model,
        base_model=origin["base_model"],
        revision=origin["base_revision"],
        candidate=order.candidate,
        cut_from=start["path"],
        earlier_tokens=start["tokens"],
        licence=order.licence,
        num_params=cut.num_params,
        weight_bytes=cut.num_bytes,
        seed_version=__version__,
        opened_by=OpenedBy(auto_class=find_auto_class(cut.config).__name__, sees=reads_images(cut.config)),
        command=order.command,
        recover=order.recover,
    )
    said = provenance.describe_raw(
        origin, order.candidate, licence=order.licence, earlier_tokens=start["tokens"], **order.measured
    )
    return {CARD: write_raw_card(raw, order.score), PROVENANCE: json.dumps(said, indent=1) + "\n"}


def stamp_weights(directory: Path) -> str:
    """A hash of the sizes and times of a checkpoint's files of weights: another one where they were written since.

    Raises:
        ModelError: weights are missing, or lie elsewhere.
    """
    files = [(path.relative_to(directory).as_posix(), path.stat()) for path in list_weights(directory)]
    return hash_text(json.dumps([(name, about.st_size, about.st_mtime_ns) for name, about in files]))


def _compose(directory: Path, kept_layers: Sequence[int], known: Candidate | None) -> Candidate:
    """The kept layers by the original's indices."""
    present = count_layers(directory)
    if known is None:
        num_layers, before = present, tuple(range(present))
    else:
        num_layers, before = known.num_layers, known.kept_layers
        if len(before) != present:
            raise ModelError(
                f"{directory}: its {PROVENANCE} says that {len(before)} layers were kept, and its config has {present}. If the "
                f"model is an original, remove {PROVENANCE}; otherwise export it again."
            )
    beyond = [layer for layer in kept_layers if layer >= len(before)]
    if beyond:
        raise ModelError(
            f"--keep {beyond[0]}: {directory} has {len(before)} layers, 0 to {len(before) - 1}. Name layers that it has."
        )
    return Candidate(num_layers=num_layers, kept_layers=tuple(before[layer] for layer in kept_layers))


def _require_same(path: Path, sha256: str | None, study: StudyFolder) -> None:
    if hash_weights(path) != sha256:
        raise ModelError(
            f"{path}: its weights changed since {study.root} was planned. Restore them, or start a study of another name."
        )
