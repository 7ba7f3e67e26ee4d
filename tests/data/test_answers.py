"""A model's own answers as recovery text: sampled once, gone on with where a process was killed, read back as they were written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from seed.config import StudyConfig
from seed.data import answers
from seed.errors import CorpusError
from seed.models.checkpoint import load_checkpoint
from seed.plans import read_plan
from seed.search import search
from seed.study_dir import StudyFolder
from tests.conftest import MakeCheckpoint, make_tokenizer
from tests.finished import Heard
from tests.running import SMALL

LONGEST = 128  # of tests' models
TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where answers are kept."""
    monkeypatch.setattr(answers.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(answers, "NEW_TOKENS", 24)
    monkeypatch.setattr(answers, "BATCH", 4)
    return tmp_path / "assets" / "seed" / "answers"


@pytest.fixture
def model(make_checkpoint: MakeCheckpoint) -> Any:
    """A tiny Llama."""
    return load_checkpoint(make_checkpoint(), device=torch.device("cpu"), dtype=torch.float32)


PROMPTS = [list(f"prompt {'x' * number}".encode()) for number in range(10)]


def write(model: Any, **more: Any) -> Path:
    told = {"version": "a", "longest": LONGEST, "on_answers": lambda count: None} | more
    return answers.write_answers(model, make_tokenizer(), PROMPTS, **told)


def test_an_answer_is_what_the_model_writes_after_its_prompt_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "TOP_P", 1e-6)  # the likeliest token each time
    found = answers.sample(model, PROMPTS, longest=LONGEST, rng_seed=0)
    assert len({len(prompt) for prompt in PROMPTS}) > 1
    for prompt, answer in zip(PROMPTS, found, strict=True):
        tokens = list(prompt)
        for token in answer:
            assert model(torch.tensor([tokens])).logits[0, -1].argmax() == token
            tokens.append(token)
        assert len(answer) == 24 or model(torch.tensor([tokens])).logits[0, -1].argmax() == 0


def test_no_answer_goes_beyond_what_the_model_reads(model: Any) -> None:
    prompt = [5] * (LONGEST - 3)
    [answer] = answers.sample(model, [prompt], longest=LONGEST, rng_seed=0)
    assert len(answer) <= 3


def test_a_killed_process_is_gone_on_with(
    model: Any, assets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = write(model).read_text()
    rows = [json.loads(line)["text"] for line in whole.splitlines()]
    tokenizer = make_tokenizer()
    assert len(rows) == len(PROMPTS)
    assert all(row.startswith(tokenizer.decode(prompt)) for row, prompt in zip(rows, PROMPTS, strict=True))
    monkeypatch.setattr(answers.constants, "HF_ASSETS_CACHE", str(tmp_path / "again"))
    sampled: list[int] = []
    sample = answers.sample

    def count(*args: Any, rng_seed: int, **more: Any) -> list[list[int]]:
        sampled.append(rng_seed)
        if sampled == [0, 4]:
            raise KeyboardInterrupt
        return sample(*args, rng_seed=rng_seed, **more)

    monkeypatch.setattr(answers, "sample", count)
    with pytest.raises(KeyboardInterrupt):
        write(model)
    [begun] = (tmp_path / "again" / "seed" / "answers").iterdir()
    with begun.open("a") as handle:
        handle.write('{"text": "torn')
    told: list[int] = []
    assert write(model, on_answers=told.append).read_text() == whole
    assert sampled == [0, 4, 4, 8]
    assert told == [4, 4, 2]
    assert write(model).read_text() == whole
    assert len(sampled) == 4
    assert write(model, version="b").is_file()  # of another model others
    assert len(sampled) == 7


def test_chats_are_answered_where_they_end(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TURNS
    asked = {"role": "user", "content": "hello"}
    rows = [{"messages": [asked]}, {"messages": [asked, {"role": "assistant", "content": "hi"}]}, {"text": "once"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    chat, same, plain = answers.read_prompts(str(path), tokenizer, longest=LONGEST)
    assert tokenizer.decode(chat) == "[user]hello[assistant]"
    assert chat == same
    assert tokenizer.decode(plain) == "once"


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"text": "x" * LONGEST}, "prompt 1 is of 128 tokens, and the model reads 1 to 127"),
        ({"text": ""}, "prompt 1 is of 0 tokens"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, ":1: nothing but answers"),
    ],
)
def test_what_cannot_be_answered_is_named(row: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TURNS
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(CorpusError) as caught:
        answers.read_prompts(str(path), tokenizer, longest=LONGEST)
    assert wanted in str(caught.value)
    path.write_text("")
    with pytest.raises(CorpusError, match="no prompt there"):
        answers.read_prompts(str(path), tokenizer, longest=LONGEST)


def test_a_search_recovers_on_answers_and_goes_on_with_the_same(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"question {number} is"}) for number in range(240)))
    told = {"model": str(make_checkpoint()), "recovery_text": f"self:{path}", "studies_dir": tmp_path, "study": "own"}
    settings = StudyConfig(**SMALL | told, max_dropped=1, frontier_size=1, distill=False)
    heard = Heard()
    first = search(settings, heard)
    plan = read_plan(StudyFolder(tmp_path / "own"))
    assert plan.protocol.recovery_text == f"self:{path}"
    assert plan.protocol.streams["recovery"].source == f"self:{path}"
    assert f"--recovery-text self:{path}" in plan.command
    assert f"reading self:{path}" in heard.lines

    def refuse(*args: Any, **more: Any) -> list[list[int]]:
        raise AssertionError("all is answered")

    monkeypatch.setattr(answers, "sample", refuse)
    record = search(settings.change(distill=True), Heard())
    assert [one.evaluation.candidate for one in record.trials] == [one.evaluation.candidate for one in first.trials]
    assert len(record.distilled) == 1
