"""Checkpoints that leave a study, or any model: what is cut, from which directory, and what is written beside the weights.

The weights themselves are copied from file to file by ``models.copying``. Nothing is trained, judged or loaded here.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from seed import __version__, study_dir
from seed.cli import spell_command
from seed.config import StudyConfig
from seed.console import Terminal
from seed.errors import ModelError, SeedError, StudyError
from seed.models.copying import Cut, count_layers, plan_cut, write_cut
from seed.models.files import CARD, PROVENANCE, is_gguf
from seed.models.formats import plan_conversion, write_conversion
from seed.models.gguf import list_types
from seed.models.loader import (
    ModelSource,
    check_source,
    find_auto_class,
    find_directory,
    find_licence,
    locate_checkpoint,
    reads_images,
)
from seed.models.provenance import (
    CutFrom,
    Provenance,
    describe_model,
    describe_origin,
    find_damage,
    leave_study,
    read_export,
    read_provenance,
    refuse_damaged,
)
from seed.models.stored import list_weights, read_tensors
from seed.plans import Protocol, SearchPlan
from seed.protocols import find_source, hash_weights, require_same_weights, resolve_location
from seed.records import Candidate, DistillResult, TrialRecord, hash_text
from seed.reporting.card import OpenedBy, Raw, Score, write_raw_card, write_recipe
from seed.reporting.result_line import ExportLine
from seed.resolve import fill_from_files, list_presets
from seed.study_dir import StudyFolder

RECIPE = "mergekit.yml"
# What an export says of itself by which it is known again.
SAME = (
    *("base_model", "base_revision", "base_sha256", "source_stamp", "start"),
    *("kept_layers", "lacking", "width", "format", "recovered", "settings"),
)
# What may lie in an empty place: what a mounted directory is filled from, and what a new file system begins with.
EMPTY = (study_dir.INSIDE, "lost+found")


@dataclass(frozen=True, kw_only=True)
class Order:
    """A cut that is to be written: what is cut, which layers stay, and what card and provenance say of it."""

    source: ModelSource  # that is cut
    directory: Path  # where it lies
    kept_layers: tuple[int, ...]  # by their index in the source
    model: str  # the original, as the user named it
    said: Provenance
    command: str  # that writes it again
    recover: str | None = None  # the command that recovers it
    score: Score | None = None


def write_order(order: Order, target: Path, *, terminal: Terminal) -> ExportLine:
    """Write a cut checkpoint with its card, its provenance and its recipe, unless it is there; all that can be is checked before.

    Raises:
        SeedError: weights are missing or damaged, the family is unfit, something else lies there, or there is no room.
    """
    place, said, score = _find_place(target, source=order.directory), order.said, order.score
    cut = plan_cut(order.directory, order.kept_layers)
    if _is_written(place, said, target=target):
        terminal.say(f"{target}: is there already, and stays as it is")
    else:
        _require_room(place, needed_bytes=cut.num_bytes)
        documents = {CARD: _write_card(order, cut), RECIPE: _write_recipe(order, cut)}
        with terminal.stage("copying", total=cut.num_bytes, is_share=True) as advance:
            write_cut(
                cut,
                place,
                documents=documents,
                provenance=said,
                on_bytes=lambda num_bytes: advance(num_bytes, ""),
            )
    return describe_export(
        said,
        target,
        num_params=cut.num_params,
        weight_bytes=cut.num_bytes,
        recipe=str(target / RECIPE),
        left_out=cut.left_out,
        ppl_ratio=None,
        unrecovered_ppl_ratio=None if score is None else score.quality.ppl_ratio,
        text=None if score is None else score.split,
    )


def describe_export(said: Provenance, target: Path, **told: Any) -> ExportLine:
    """Return the line of a checkpoint by its seed.json, and what that does not say."""
    return ExportLine(
        path=str(target),
        base_model=said.base_model,
        base_revision=said.base_revision,
        num_layers=said.num_layers,
        kept_layers=said.kept_layers,
        dropped_layers=said.dropped_layers,
        parts=said.candidate.parts,
        is_recovered=said.recovered,
        **told,
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
        parts=candidate.parts,
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
    """Copy a distilled model, unless it lies there already."""
    source = Path(line.path)
    place = _find_place(target, source=source)
    if not _is_written(place, read_provenance(source, place=line.path), target=target):
        _require_room(place, needed_bytes=sum(file.stat().st_size for file in source.rglob("*") if file.is_file()))
        with study_dir.explain_resource_errors(target), study_dir.replace_directory(place) as aside:
            shutil.copytree(source, aside, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return msgspec.structs.replace(line, path=str(target))


def convert_model(source: Path, *, runtime: str, target: Path) -> ExportLine:
    """Write an exported model in the format of a runtime that runs its layers without what they lack, unless it lies there already.

    Raises:
        SeedError: it is no model that Seed exported, the runtime cannot hold it, something else lies there, or there is no room.
    """
    found = read_export(source, place=str(source))
    conversion = plan_conversion(source, found.candidate, runtime=runtime)
    fields = {name: getattr(found, name) for name in Provenance.__struct_fields__}
    said = Provenance(**fields | {"format": runtime, "source_stamp": stamp_weights(source)})
    place = _find_place(target, source=source)
    if not _is_written(place, said, target=target):
        _require_room(place, needed_bytes=conversion.num_bytes)
        write_conversion(conversion, place, provenance=said)
    tensors = read_tensors(place)
    return describe_export(
        said,
        target,
        num_params=sum(tensor.numel for tensor in tensors),
        weight_bytes=sum(tensor.num_bytes for tensor in tensors),
        recipe=None,
        left_out=(),
        ppl_ratio=_find_ratio(said, "test"),
        unrecovered_ppl_ratio=_find_ratio(said, "test_unrecovered"),
        text="test" if said.recovered else None,
    )


def _find_ratio(said: Provenance, name: str) -> float | None:
    """A PPL ratio that a recovered model says of itself; None: it says none."""
    quality = said.metrics.get(name) if said.recovered else None
    ratio = quality.get("ppl_ratio") if isinstance(quality, dict) else None
    return ratio if isinstance(ratio, float) else None


def order_trial(study: StudyFolder, plan: SearchPlan, trial: TrialRecord, distilled: Sequence[DistillResult]) -> Order:
    """Return the order for the candidate of a trial, cut from what the study's candidates are cut from.

    Raises:
        ModelError: weights changed since the study was planned.
    """
    protocol, candidate = plan.protocol, trial.evaluation.candidate
    if candidate.lacking:
        raise StudyError(
            f"--no-recovery: {candidate.key} lacks attention or MLP of some layers, and only whole layers are cut from a checkpoint as "
            f"it is. Leave it out, with the model distilled: {spell_command('seed.distill', {'trial': trial.number}, str(study.root))}"
        )
    location, sha256, kept = protocol.location, protocol.weights_sha256, candidate.kept_layers
    if protocol.start is not None:
        location, sha256 = protocol.start, protocol.start_sha256
        before = read_provenance(Path(location), place=f"{study.root}: its start {location}")
        kept = tuple(before.kept_layers.index(layer) for layer in kept)
    if sha256 is None:
        source = ModelSource(location=location, revision=protocol.commit or protocol.revision)
    else:
        require_same_weights(location, sha256, study=study)
        source = ModelSource(location=str(resolve_location(location)))
    directory = locate_checkpoint(source).directory
    score = find_score(protocol, trial, distilled)
    metrics = {"size": trial.evaluation.size, "latency": trial.evaluation.latency}
    said = describe_model(
        candidate,
        **describe_origin(protocol),
        licence=find_licence(directory, named=protocol.license),
        study=plan.name,
        trial=trial.number,
        recovered=False,
        settings={"distill_tokens": 0, "earlier_tokens": protocol.start_tokens},
        streams=protocol.streams,
        metrics=metrics | ({} if score is None else {score.split: leave_study(score.quality)}),
    )
    words = (str(study.root),)
    return Order(
        source=source,
        directory=directory,
        kept_layers=kept,
        model=protocol.model,
        said=said,
        command=spell_command("seed.export", {"trial": trial.number, "recovery": False}, *words),
        recover=spell_command("seed.distill", {"trial": trial.number}, *words),
        score=score,
    )


def order_layers(model: str, kept_layers: Sequence[int], *, revision: str | None) -> Order:
    """Return the order for layers of any model: a directory, a hub id, or a preset's name.

    Of a model of the hub the commit is noted. Weights of a directory are not hashed: that reads all of them once more, at
    0.9 GB/s on a machine that copies 0.2 to 1.2 GB/s; sizes and times of their files are, to know them again.

    Raises:
        ModelError: no such model or layers, or a model that Seed cut before and whose seed.json is damaged.
    """
    settings = fill_from_files(StudyConfig(model=model, revision=revision))
    source = find_source(settings)
    check_source(source, presets=list_presets())
    located = locate_checkpoint(source)
    directory, source = located.directory, replace(source, revision=located.commit)
    present = count_layers(directory)
    num_layers, before, earlier_tokens, gone = present, tuple(range(present)), 0, tuple[str, ...]()
    origin: dict[str, Any] = {"base_model": source.location, "base_revision": located.commit}
    if is_gguf(source.location):
        origin |= {"base_sha256": hash_weights(Path(source.location)), "gguf_types": list_types(source.location)}
    if (directory / PROVENANCE).is_file():  # it was cut before: layers go by the original's indices
        earlier = read_provenance(directory, place=str(directory))
        if earlier.is_narrow:
            raise ModelError(
                f"{directory}: is cut in width, and no longer made of the original's layers. Cut the original."
            )
        num_layers, before, earlier_tokens = earlier.num_layers, earlier.kept_layers, earlier.tokens
        gone = earlier.candidate.parts
        if len(before) != present:
            raise ModelError(
                f"{directory}: its {PROVENANCE} says that {len(before)} layers were kept, and its config has {present}. If the "
                f"model is an original, remove {PROVENANCE}; otherwise export it again."
            )
        same = ("base_model", "base_revision", "base_sha256", "gguf_types")
        origin = {name: getattr(earlier, name) for name in same}
        origin["start"] = CutFrom(path=str(directory), sha256=None, tokens=earlier_tokens)
    if beyond := [layer for layer in kept_layers if layer >= present]:
        raise ModelError(
            f"--keep {beyond[0]}: {directory} has {present} layers, 0 to {present - 1}. Name layers that it has."
        )
    if len(kept_layers) == present:
        raise ModelError(f"--keep: names all {present} layers of {model}, and nothing would be cut. Leave some out.")
    refuse_damaged(directory, place=str(directory))
    words = {"keep": ",".join(map(str, kept_layers)), "revision": source.revision, "out": "DIRECTORY"}
    return Order(
        source=source,
        directory=directory,
        kept_layers=tuple(kept_layers),
        model=Path(model if "start" not in origin else origin["base_model"]).name,
        said=describe_model(
            Candidate.drop(num_layers, [*gone, *(str(before[i]) for i in range(present) if i not in kept_layers)]),
            **origin,
            source_stamp=None if located.commit or is_gguf(source.location) else stamp_weights(directory),
            licence=find_licence(directory, named=settings.license),
            recovered=False,
            settings={"distill_tokens": 0, "earlier_tokens": earlier_tokens},
        ),
        command=spell_command("seed.export", words, model),
    )


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


def _write_card(order: Order, cut: Cut) -> str:
    said = order.said
    raw = Raw(
        model=order.model,
        base_model=said.base_model,
        revision=said.base_revision,
        candidate=said.candidate,
        cut_from=None if said.start is None else said.start.path,
        earlier_tokens=0 if said.start is None else said.start.tokens,
        licence=said.licence,
        gguf_types=said.gguf_types,
        num_params=cut.num_params,
        weight_bytes=cut.num_bytes,
        seed_version=__version__,
        opened_by=OpenedBy(auto_class=find_auto_class(cut.config).__name__, sees=reads_images(cut.config)),
        command=order.command,
        recover=order.recover,
    )
    return write_raw_card(raw, order.score)


def _write_recipe(order: Order, cut: Cut) -> str:
    source = order.source
    return write_recipe(
        source.location if find_directory(source.location) is None else str(order.directory),
        revision=source.revision,
        kept_layers=order.kept_layers,
        dtype=cut.dtype,
    )


def stamp_weights(directory: Path) -> str:
    """A hash of the sizes and times of a checkpoint's files of weights: another one where they were written since.

    Raises:
        ModelError: weights are missing, or lie elsewhere.
    """
    files = [(path.relative_to(directory).as_posix(), path.stat()) for path in list_weights(directory)]
    return hash_text(json.dumps([(name, about.st_size, about.st_mtime_ns) for name, about in files]))


def _find_place(target: Path, *, source: Path) -> Path:
    """Follow what the user named to the directory that is to be written there.

    Raises:
        SeedError: this process stands in it, and would stand nowhere once it is replaced; or the source lies there.
    """
    place, whole = target.resolve(), source.resolve()
    if Path.cwd().is_relative_to(place):
        raise StudyError(f"{target}: this command runs in it, and it would be replaced. Give another --out.")
    if whole.is_relative_to(place) or place.is_relative_to(whole):
        raise ModelError(f"{target}: is, holds or lies in the model itself ({source}). Give another --out.")
    return place


def _is_written(place: Path, said: Provenance, *, target: Path) -> bool:
    """Was the export that says this of itself written to this place before? What lies there is never touched.

    Raises:
        StudyError: something else lies there.
    """
    try:
        study_dir.require_readable(place)
        if not place.exists() or not any(path.name not in EMPTY for path in place.iterdir()):
            return False
        found = read_provenance(place, place=str(target))
    except (OSError, SeedError):
        found = None
    if found is None or any(getattr(found, name) != getattr(said, name) for name in SAME):
        raise StudyError(f"{target}: something else is already there. Move it away, or give another --out.")
    if damage := find_damage(place):
        raise StudyError(f"{target}: damaged: {damage}. Move it away, or give another --out.")
    return True


def _require_room(place: Path, *, needed_bytes: int) -> None:
    above = next(path for path in (place, *place.parents) if path.is_dir())
    cure = "Free some room, or choose another disk with --out DIRECTORY."
    study_dir.require_room(above, needed_bytes=needed_bytes, purpose="this checkpoint", cure=cure)
