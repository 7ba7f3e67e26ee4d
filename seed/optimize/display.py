"""What Optuna Dashboard shows of a study beside its trials: notes, figures, and the cards of exported models.

Written into the study only where something changed, since a journal keeps every line for ever; what people wrote over a
note of ours is theirs and stays. Texts and figures are handed in; nothing is worded or drawn here.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import StorageInternalError

from seed import folder
from seed.errors import StudyError, first_line
from seed.records import hash_text

SHOWN = "seed:shown:"  # attributes that say what was written last: a hash, or nothing while it is being written
BLANK = '{"data":[],"layout":{}}'
# Optuna refuses attributes of finished trials, and Optuna Dashboard reads artifacts of trials here too
ARTIFACT = "dashboard:artifacts:{trial_id}:{artifact_id}"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure that is drawn already, in the form that Optuna Dashboard asks for."""

    content: str

    def to_json(self) -> str:
        return self.content


@dataclass(frozen=True, kw_only=True)
class NotedTrial:
    """As much of a trial as a note needs; a real one would ask its sampler."""

    study: optuna.Study
    storage: optuna.storages.BaseStorage
    _trial_id: int


def show_study(
    study: optuna.Study,
    *,
    note: str,
    trial_notes: Mapping[int, str],
    figures: Mapping[str, str],
    cards: Mapping[int, str],
    artifacts: Path,
) -> int:
    """Make the study show these and nothing else of ours; return how many things had to be written.

    Args:
        study: an opened study.
        note: Markdown.
        trial_notes: Markdown by trial number; notes of ours at other trials are taken away.
        figures: Plotly JSON by id.
        cards: Markdown of exported models' cards by trial number.
        artifacts: the directory of the artifact store.

    Raises:
        StudyError: the storage does not take it.
        ResourceError: the disk does not take a card.
    """
    with _explain_failures(study):
        known = _read_shown(study)
        gone = {name for name, value in known.items() if value}
        gone -= {f"note:{number}" for number in trial_notes} | {f"figure:{name}" for name in figures}
        gone -= {"note"} | {f"card:{number}" for number in cards}
        written = int(show_note(study, note))
        written += sum(show_note(study, body, number=number) for number, body in trial_notes.items())
        written += sum(show_figure(study, content, name=name) for name, content in figures.items())
        written += sum(show_card(study, text, number=number, artifacts=artifacts) for number, text in cards.items())
        for thing in sorted(gone):
            kind, _, name = thing.partition(":")
            if kind == "note":
                written += show_note(study, "", number=int(name))
            elif kind == "figure":  # a figure can be replaced, not deleted
                written += show_figure(study, BLANK, name=name)
            else:
                written += hide_card(study, number=int(name), artifacts=artifacts)
    return written


def show_note(study: optuna.Study, body: str, *, number: int | None = None) -> bool:
    """Write the note of the study, or of its trial ``number``. False: it stands already, or is somebody else's by now.

    Raises:
        StudyError: the storage does not take it.
    """
    with _explain_failures(study):
        place: Any = study
        if number is not None:
            place = NotedTrial(study=study, storage=study._storage, _trial_id=_find_trial_id(study, number))
        name = "note" if number is None else f"note:{number}"
        known = _read_shown(study).get(name)
        if known == hash_text(body):
            return False
        from optuna_dashboard import get_note, save_note  # importing it takes longer than importing torch

        present = get_note(place)
        if present and known != "" and (known is None or hash_text(present) != known):
            return False
        with _remember(study, name, hash_text(body)):
            save_note(place, body)
        return True


def show_figure(study: optuna.Study, content: str, *, name: str) -> bool:
    """Write a figure, given as Plotly JSON, in the place of the one with this id. False: it stands already."""
    if _read_shown(study).get(f"figure:{name}") == hash_text(content):
        return False
    from optuna_dashboard import save_plotly_graph_object

    with _remember(study, f"figure:{name}", hash_text(content)):
        save_plotly_graph_object(study, cast("Any", Drawing(content=content)), graph_object_id=name)
    return True


def show_card(study: optuna.Study, text: str, *, number: int, artifacts: Path) -> bool:
    """Upload a model's card to trial ``number``, in the place of an earlier one. False: it stands already."""
    artifact_id = hash_text(f"{number}/{text}")[:32]  # the same card twice is one file
    known = _read_shown(study).get(f"card:{number}")
    if known == artifact_id and (artifacts / artifact_id).is_file():
        return False
    folder.write_bytes(artifacts / artifact_id, text.encode())
    about = {"artifact_id": artifact_id, "filename": "README.md", "mimetype": "text/markdown", "encoding": None}
    _describe_artifact(study, number, artifact_id, about)
    if known and known != artifact_id:
        _remove_artifact(study, number, known, artifacts)
    _set_shown(study, f"card:{number}", artifact_id)
    return True


def hide_card(study: optuna.Study, *, number: int, artifacts: Path) -> bool:
    """Take a card away whose model is no longer there. False: there is none."""
    known = _read_shown(study).get(f"card:{number}")
    if not known:
        return False
    _remove_artifact(study, number, known, artifacts)
    _set_shown(study, f"card:{number}", "")
    return True


def _read_shown(study: optuna.Study) -> dict[str, str]:
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {key.removeprefix(SHOWN): value for key, value in attributes.items() if key.startswith(SHOWN)}


def _set_shown(study: optuna.Study, name: str, value: str) -> None:
    study._storage.set_study_system_attr(study._study_id, f"{SHOWN}{name}", value)


@contextlib.contextmanager
def _remember(study: optuna.Study, name: str, value: str) -> Iterator[None]:
    """Long texts are stored in pieces: a killed writer leaves some of two, and an empty hash that says so."""
    _set_shown(study, name, "")
    yield
    _set_shown(study, name, value)


def _find_trial_id(study: optuna.Study, number: int) -> int:
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)


def _describe_artifact(study: optuna.Study, number: int, artifact_id: str, about: dict[str, Any] | None) -> None:
    key = ARTIFACT.format(trial_id=_find_trial_id(study, number), artifact_id=artifact_id)
    study._storage.set_study_system_attr(study._study_id, key, json.dumps(about))


def _remove_artifact(study: optuna.Study, number: int, artifact_id: str, artifacts: Path) -> None:
    _describe_artifact(study, number, artifact_id, None)
    with contextlib.suppress(ArtifactNotFound):
        FileSystemArtifactStore(artifacts).remove(artifact_id)


@contextlib.contextmanager
def _explain_failures(study: optuna.Study) -> Iterator[None]:
    try:
        yield
    except (StorageInternalError, OSError) as error:
        raise StudyError(
            f"study {study.study_name}: its storage does not take the notes and figures for Optuna Dashboard ({first_line(error)}). "
            "Make sure that it can be written, and run python -m seed.report with the study's folder."
        ) from error
