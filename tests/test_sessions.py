"""What a study works with: its objective, its proofs, its precision."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seed import protocols, sessions, study_dir
from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.protocols import choose_proxy
from seed.records import SearchSpace
from seed.sessions import move, prepare_instruments, prove, prove_closed_form
from tests.proxy.opened import open_grafted, open_instruments
from tests.stages.opened import make_plan, open_session


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_closed_form_is_proven_on_the_folded_student(family: str, tmp_path: Path) -> None:
    assert prove_closed_form(open_session(tmp_path, family=family), open_instruments(family)) is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_closed_form_is_proven_on_a_grafted_model_too(family: str, tmp_path: Path) -> None:
    space = SearchSpace(num_layers=4, droppable_layers=(0, 2, 3), min_dropped=2, max_dropped=3, gone_layers=(1,))
    instruments, _ = open_grafted(family)
    session = replace(open_session(tmp_path, family=family, space=space), grafted=instruments.source)
    assert prepare_instruments(session).source is instruments.source
    assert prove_closed_form(session, instruments) is None


def test_closed_form_that_does_not_fold_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seed.proxy.instruments.fold_refit", lambda student, candidate, refit, **how: None)
    fault = prove_closed_form(open_session(tmp_path), open_instruments())
    assert fault is not None
    assert re.search(r"validation loss of .* but its score says ", fault)


def test_evaluators_agree_with_the_coordinator_whether_there_is_closed_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(tmp_path)
    monkeypatch.setattr(sessions, "measure_gains", lambda anatomy, states: None)
    assert move(session, session.device, study=session.folder).gains == session.gains
    monkeypatch.undo()
    assert move(session, session.device, study=session.folder).gains == pytest.approx(session.gains)
    assert move(replace(session, gains=None), session.device, study=session.folder).gains is None


def test_logits_that_are_no_numbers_are_called_so(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    model = copy.deepcopy(session.teacher.model)
    model.model.norm.weight *= 3e38  # finite, and beyond what any state can be multiplied with
    session = replace(session, anatomy=Anatomy(model), teacher=replace(session.teacher, model=model))
    with pytest.raises(
        ModelError, match=r"--model tiny: its logits of layers 0, 1, 2, 3 are NaN or infinite in float32"
    ):
        prove(session)


def test_a_study_goes_on_in_the_precision_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(tmp_path, mixed_precision=True)
    monkeypatch.setattr(protocols, "computes_bfloat16", lambda device: False)
    assert not protocols.choose_precision(session.folder, protocols.describe_reference(session.device))
    study_dir.write_record(session.folder.plan, make_plan(session.protocol, trials=5, covers_space=False))
    assert protocols.choose_precision(session.folder, protocols.describe_reference(session.device))


def test_the_proxy_is_the_best_that_the_family_allows() -> None:
    assert choose_proxy(None, gains={0: 1.0}, family="llama") == "closed-form"
    assert choose_proxy("short-distillation", gains={0: 1.0}, family="llama") == "short-distillation"
    assert choose_proxy(None, gains=None, family="gemma2") == "short-distillation"
    with pytest.raises(ModelError, match="--proxy closed-form: not available for gemma2"):
        choose_proxy("closed-form", gains=None, family="gemma2")


@pytest.mark.parametrize("wrong", [lambda layer, before: layer == 2, lambda layer, before: layer > before + 1])
def test_a_model_whose_layers_are_not_what_they_seem_is_refused(
    wrong: Callable[[int, int], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(tmp_path)
    prove(session)
    run_layer, before = Anatomy.run_layer, [-1]

    def run(self: Anatomy, layer: int, hidden_BTD: torch.Tensor) -> torch.Tensor:
        is_wrong = wrong(layer, before[0])
        before[0] = layer if layer < 3 else -1
        return run_layer(self, layer, hidden_BTD) + int(is_wrong)

    monkeypatch.setattr(Anatomy, "run_layer", run)
    with pytest.raises(ModelError, match="running its layers one by one does not give the model's own logits"):
        prove(session)
