"""What Optuna Dashboard shows of a study beside its trials: a note, figures, and the cards of exported models.

Written into the study only where something changed, since a journal keeps every line for ever; what people wrote over a
note of ours is theirs and stays. Texts and figures are handed in; nothing is worded or drawn here.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact

from seed import study_dir
from seed.optimize.storage import explain_outage
from seed.records import hash_text

SHOWN = "seed:shown"  # attribute of the study: what was written last, as hashes by name; empty ones while it is being written
HASH_DIGITS = 12
BLANK = '{"data":[],"layout":{}}'  # figures and artifacts can be replaced, not deleted
GONE = "The model that this card was of is no longer in the study's folder.\n"
# both name files, and a journal may come from anyone
OURS = re.compile(r"note|figure:[A-Za-z][\w-]*|card:\w[\w.-]*\.md", re.ASCII)
ARTIFACT_ID = re.compile(r"[0-9a-f-]{36}")


@dataclass(frozen=True, kw_only=True)
class DrawnFigure:
    """A figure that is drawn already, in the form that Optuna Dashboard asks for."""

    content: str

    def to_json(self) -> str:
        return self.content


def show_study(
    study: optuna.Study, *, note: str, figures: Mapping[str, str], cards: Mapping[str, str], artifacts: Path
) -> int:
    """Make the study show these and nothing else of ours; return how many things had to be written.

    Args:
        study: an opened study.
        note: Markdown.
        figures: Plotly JSON by id.
        cards: Markdown of exported models' cards, by the name of a file: drop-1.md.
        artifacts: the directory of the artifact store.

    Raises:
        ResourceError: the storage or the disk does not take it.
    """
    with explain_outage():
        ours = read_shown(study)
        wanted = {name: BLANK for name in ours if name.startswith("figure:")}
        wanted |= {name: GONE for name in ours if name.startswith("card:")}
        wanted |= {f"figure:{name}": content for name, content in figures.items()}
        wanted |= {f"card:{name}": text for name, text in cards.items()}
        return _write_changed(study, {"note": note, **wanted}, artifacts=artifacts)


def show_note(study: optuna.Study, body: str, *, artifacts: Path) -> bool:
    """Write the study's note. False: it stands already, or is somebody else's by now.

    Raises:
        ResourceError: the storage does not take it.
    """
    with explain_outage():
        return _write_changed(study, {"note": body}, artifacts=artifacts) > 0


def read_shown(study: optuna.Study) -> dict[str, str]:
    """Hashes of what was written last, by name; an empty one where the writer was stopped."""
    found = study.user_attrs.get(SHOWN)
    known = found.items() if isinstance(found, dict) else ()
    return {name: str(value) for name, value in known if OURS.fullmatch(name)}


def _write_changed(study: optuna.Study, wanted: Mapping[str, str], *, artifacts: Path) -> int:
    known = read_shown(study)
    hashes = {name: hash_text(content)[:HASH_DIGITS] for name, content in wanted.items()}
    changed = {name for name in wanted if known.get(name) != hashes[name]}
    if "note" in changed and _is_theirs(study, known.get("note")):
        changed.remove("note")
    if not changed:
        return 0
    study.set_user_attr(SHOWN, {**known, **dict.fromkeys(sorted(changed), "")})
    for name in sorted(changed):
        _write_one(study, name, wanted[name], artifacts=artifacts)
    study.set_user_attr(SHOWN, {**known, **{name: hashes[name] for name in sorted(changed)}})
    return len(changed)


def _is_theirs(study: optuna.Study, known: str | None) -> bool:
    """Did people write the note that stands there?"""
    from optuna_dashboard import get_note  # importing it takes longer than importing torch

    present = get_note(study)
    return bool(present) and known != "" and hash_text(present)[:HASH_DIGITS] != known


def _write_one(study: optuna.Study, name: str, content: str, *, artifacts: Path) -> None:
    from optuna_dashboard import save_note, save_plotly_graph_object

    kind, _, key = name.partition(":")
    if kind == "note":
        save_note(study, content)
    elif kind == "figure":
        save_plotly_graph_object(study, cast("Any", DrawnFigure(content=content)), graph_object_id=key)
    else:
        _write_card(study, key, content, artifacts=artifacts)


def _write_card(study: optuna.Study, name: str, text: str, *, artifacts: Path) -> None:
    """Upload a card, or replace the one of this name."""
    for known in get_all_artifact_meta(study):
        if known.filename == name and ARTIFACT_ID.fullmatch(known.artifact_id):
            study_dir.write_bytes(artifacts / known.artifact_id, text.encode())
            return
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside) / name
            path.write_text(text, encoding="utf-8")
            upload_artifact(
                artifact_store=FileSystemArtifactStore(artifacts),
                file_path=str(path),
                study_or_trial=study,
                mimetype="text/markdown",
            )
    except OSError as error:
        raise study_dir.refuse_write(artifacts, error) from error
