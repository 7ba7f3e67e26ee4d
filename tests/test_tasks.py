"""Tasks of lm-eval on what was exported: the numbers are right, lm-eval itself finds the same, and what cannot be is said."""

import functools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import transformers

from seed.console import Terminal
from seed.errors import SeedError
from seed.evaluation import tasks
from seed.models.checkpoint import load_checkpoint, load_tokenizer
from seed.records import MetricScore
from seed.reporting.result_line import JudgedLine
from seed.reporting.result_text import write_result
from seed.results import compute_result, keeps_share
from seed.search import search
from seed.stages import judging, study_record
from tests.conftest import MakeCheckpoint, make_tokenizer
from tests.finished import Finished
from tests.running import error_of, read_line, run_seed

CPU = torch.device("cpu")
# choices of one length, so that not the shortest always wins; of a random model's choices about a third are right
DOCUMENTS = [
    {"question": f"{first} and {second} are", "choices": ["fade.", "abide", "ghij!"], "gold": (i + j) % 3}
    for i, first in enumerate(["a bee", "the dad", "ice", "jade"])
    for j, second in enumerate(["cab", "bag", "a hid egg", "chef", "fig"])
]
CHOICE = """
task: toy_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
TEXT = """
task: toy_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
"""
SHOTS = CHOICE.replace("toy_choice", "toy_shots") + "fewshot_split: test\nnum_fewshot: 2\n"
GROUP = """
group: toys
task: [toy_choice, toy_other]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
"""
FROM_THE_HUB = """
task: toy_hub
dataset_path: nobody/nothing
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
"""
UNSAFE = CHOICE.replace("toy_choice", "toy_unsafe") + "unsafe_code: true\n"


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own tasks take five seconds to index, and none of them is wanted."""
    import lm_eval.tasks

    manager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with task files and their data."""
    path = tmp_path_factory.mktemp("toys")
    data, cache = path / "data" / "questions.jsonl", path / "cache"
    data.parent.mkdir()
    data.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name, text in {"choice": CHOICE, "text": TEXT, "shots": SHOTS, "unsafe": UNSAFE}.items():
        (path / f"{name}.yaml").write_text(text.format(data=data, cache=cache))
    (path / "hub.yaml").write_text(FROM_THE_HUB)
    return path


def score(checkpoint: Path, *names: str, toys: Path, **words: int) -> list[MetricScore]:
    model, tokenizer = load_checkpoint(checkpoint, device=CPU, dtype=torch.float32), load_tokenizer(checkpoint)
    opened = tasks.open_tasks(names, include_path=toys, **words)
    return tasks.score_tasks(model, tokenizer, opened)


@torch.no_grad()
def choose_by_hand(checkpoint: Path) -> list[bool]:
    """Whether the most likely of each document's choices is the right one, from the model's logits alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    right = []
    for document in DOCUMENTS:
        question = tokenizer(document["question"])["input_ids"]
        likelihoods = []
        for choice in document["choices"]:
            tokens = tokenizer(f"{document['question']} {choice}")["input_ids"]
            assert tokens[: len(question)] == question
            logs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            likelihoods.append(sum(logs[i - 1, tokens[i]].item() for i in range(len(question), len(tokens))))
        right.append(max(range(3), key=lambda i: likelihoods[i]) == document["gold"])
    return right


@torch.no_grad()
def byte_perplexity(checkpoint: Path) -> float:
    """Tokens are bytes here; a text begins behind the token that ends texts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = make_tokenizer()
    loss, count = 0.0, 0
    for document in DOCUMENTS:
        tokens = torch.tensor([[0, *tokenizer(document["question"])["input_ids"]]])
        logits = model(tokens).logits[0, :-1]
        loss += torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
        count += tokens.shape[1] - 1
    return math.exp(loss / count)


def test_what_cannot_be_opened_is_said(toys: Path, tmp_path: Path) -> None:
    with pytest.raises(SeedError, match=r"toy_hub.*hub cannot be reached.*--include-path"):
        tasks.open_tasks(["toy_choice", "toy_hub"], include_path=toys)
    with pytest.raises(SeedError, match=r"toy_unsafe.*--confirm-unsafe-code"):
        tasks.open_tasks(["toy_unsafe"], include_path=toys)
    assert tasks.open_tasks(["toy_unsafe"], include_path=toys, allow_unsafe=True).opened
    with pytest.raises(SeedError, match="no such directory"):
        tasks.open_tasks(["toy_choice"], include_path=tmp_path / "nowhere")
    with pytest.raises(SeedError, match=r"--tasks qqqqqq,toy_choise: .* For toy_choise, did you mean toy_choice"):
        tasks.open_tasks(["toy_*", "qqqqqq", "toy_choise"], include_path=toys)
    (tmp_path / "broken.yaml").write_text(
        "task: toy_broken\ndataset_path: json\ndataset_kwargs: {data_files: gone.jsonl}\n"
    )
    with pytest.raises(SeedError, match=r"toy_broken: lm-eval cannot open them.*gone.jsonl"):
        tasks.open_tasks(["toy_broken"], include_path=tmp_path)
    (tmp_path / "mine.yaml").write_text("task: mine\nmetric_list:\n  - {metric: acc\ntest_split: test\n")
    with pytest.raises(SeedError, match=r"knows no such task. Of the files in .* leaves out .* what is no YAML"):
        tasks.open_tasks(["mine"], include_path=tmp_path)


def test_a_group_is_scored_as_a_whole_and_by_its_tasks(
    make_checkpoint: MakeCheckpoint, toys: Path, tmp_path: Path
) -> None:
    for name in ("choice.yaml", "text.yaml"):
        shutil.copy(toys / name, tmp_path)
    (tmp_path / "other.yaml").write_text((tmp_path / "choice.yaml").read_text().replace("toy_choice", "toy_other"))
    (tmp_path / "group.yaml").write_text(GROUP)
    found = [one.score for one in score(make_checkpoint(), "toys", "toy_text", toys=tmp_path)]
    assert {one.task: one.documents for one in found} == {"toys": 40, "toy_choice": 20, "toy_other": 20, "toy_text": 20}
    whole, choice = (next(one for one in found if one.task == name) for name in ("toys", "toy_choice"))
    assert whole.value == pytest.approx(choice.value)
    assert whole.metric == "acc"
    with pytest.raises(SeedError, match=r"Duplicate task 'toy_choice'"):
        tasks.open_tasks(["toy_choice", "toys"], include_path=tmp_path)


def test_a_model_of_a_study_is_judged_beside_the_dense_one(
    finished_study: Finished, make_checkpoint: MakeCheckpoint, toys: Path
) -> None:
    path = finished_study.model
    words = ["seed.evaluate", str(path), "--tasks=toy_choice,toy_text", f"--include-path={toys}"]
    done = run_seed(*words, "--json", cwd=toys)
    line = read_line(done, JudgedLine)
    choice, text = line.tasks
    right, dense = choose_by_hand(path), choose_by_hand(make_checkpoint("qwen2"))
    share, gaps = sum(right) / len(right), [ours - theirs for ours, theirs in zip(right, dense, strict=True)]
    assert any(gaps)
    assert (choice.task, choice.metric, choice.documents) == ("toy_choice", "acc", len(DOCUMENTS))
    assert choice.value == pytest.approx(share)
    assert choice.standard_error == pytest.approx(math.sqrt(share * (1 - share) / (len(right) - 1)))
    assert choice.dense_value == pytest.approx(sum(dense) / len(dense))
    assert choice.difference == pytest.approx(choice.value - choice.dense_value)
    assert choice.difference_standard_error == pytest.approx(np.std(gaps, ddof=1) / math.sqrt(len(gaps)))
    assert text.value == pytest.approx(byte_perplexity(path), rel=1e-4)
    assert (choice.higher_is_better, text.higher_is_better) == (True, False)
    assert text.difference_standard_error is None  # no mean over documents, so there are no paired differences
    assert line.ppl_ratio is not None
    said = re.sub(r" +", " ", done.stderr)
    assert f"toy_choice acc ↑ 0 20 {choice.value:.4f} ± {choice.standard_error:.4f} {choice.dense_value:.4f}" in said
    assert f"tasks: lm-eval asks {path.name}, then the dense model" in said
    assert "lm-eval 0." in said


def test_a_search_judges_its_models_by_tasks_each_once(
    finished_study: Finished, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, study = finished_study.move(tmp_path)
    shutil.copytree(finished_study.folder.root, study.root)
    own = Path(shutil.copytree(toys, tmp_path / "own"))
    asked: list[str] = []
    score_tasks = judging.score_tasks

    def count(model: object, tokenizer: object, opened: tasks.TaskSet) -> list[MetricScore]:
        asked.extend(opened.names)
        return score_tasks(model, tokenizer, opened)

    monkeypatch.setattr(judging, "score_tasks", count)
    told = settings.change(tasks=("toy_choice",), include_path=own)
    record = search(told, Terminal(quiet=True))
    assert asked == ["toy_choice"] * (1 + len(record.distilled))
    assert record.distilled == finished_study.record.distilled  # none is made again
    keys = ["dense", *(one.key for one in record.distilled)]
    assert list(record.tasks) == keys
    for key in keys[1:]:
        [found] = record.tasks[key]
        right, [dense] = choose_by_hand(study.model(key)), record.tasks["dense"]
        assert found.value == pytest.approx(sum(right) / len(right))
        assert found.dense_value == dense.value
        assert found.difference_standard_error is not None
    # what is asked for besides is all that is run; a floor that no model reaches leaves none to recommend
    search(told.change(tasks=("toy_choice", "toy_text"), min_task=("toy_text=1", "toy_choice=1")), Terminal(quiet=True))
    assert asked[len(keys) :] == ["toy_text"] * len(keys)
    result = compute_result(study_record.gather_record(study))
    kept = {
        one.key: all(keeps_share(score, 1.0) for score in one.tasks if score.metric in ("acc", "byte_perplexity"))
        for one in result.distilled
    }
    assert {one.key: one.keeps_tasks for one in result.distilled} == kept
    assert not all(kept.values())
    said = re.sub(r"\s+", " ", write_result(result, study=study))
    assert "without layers toy_choice toy_text" in said
    assert "Not recommended, since they keep less than 100 % of toy_text and 100 % of toy_choice: without" in said
    page = study.report.read_text()
    assert "What tasks say" in page
    assert "toy_text, byte_perplexity" in page
    # other task files, other tasks
    (own / "choice.yaml").write_text((own / "choice.yaml").read_text() + "num_fewshot: 0\n")
    record = search(told, Terminal(quiet=True))
    assert asked[2 * len(keys) :] == ["toy_choice"] * len(keys)
    # no floor is asked for now; where one is, what was not asked does not keep it
    assert record.floors == {}
    strange = msgspec.structs.replace(record, floors={"toy_other": 0.1})
    assert not any(one.keeps_tasks for one in compute_result(strange).distilled)


def test_a_floor_of_no_task_is_refused_before_anything_is_done(
    finished_study: Finished, toys: Path, tmp_path: Path
) -> None:
    settings, study = finished_study.move(tmp_path)
    with pytest.raises(SeedError, match=r"--min-task toy_text: no such task is asked for; there are: toy_choice"):
        search(
            settings.change(tasks=("toy_choice",), include_path=toys, min_task=("toy_text=0.9",)), Terminal(quiet=True)
        )
    assert not study.root.exists()


def test_lm_eval_itself_reads_the_directory_and_finds_the_same(finished_study: Finished, toys: Path) -> None:
    import lm_eval
    import lm_eval.tasks

    path, names = finished_study.model, ["toy_choice", "toy_text", "toy_shots"]
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={path},dtype=float32",
        tasks=names,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(toys)),
        device="cpu",
        bootstrap_iters=0,
    )["results"]
    choice, text, shots = (one.score for one in score(path, *names, toys=toys))
    assert found["toy_choice"]["acc,none"] == pytest.approx(choice.value)
    assert found["toy_shots"]["acc,none"] == pytest.approx(shots.value)
    assert shots.num_fewshot == 2
    assert found["toy_text"]["byte_perplexity,none"] == pytest.approx(text.value, rel=1e-5)


def test_any_checkpoint_is_judged_alone(make_checkpoint: MakeCheckpoint, text_file: Path, toys: Path) -> None:
    words = ["seed.evaluate", str(make_checkpoint("gpt2")), "--test-text", str(text_file), "--test-tokens=512"]
    words += ["--tasks=toy_choice", "--task-limit=6", "--task-batch=3", "--include-path", str(toys), "--json"]
    done = run_seed(*words, "--device=cpu", cwd=toys)
    [choice] = read_line(done, JudgedLine).tasks
    assert choice.value == pytest.approx(sum(choose_by_hand(make_checkpoint("gpt2"))[:6]) / 6)
    assert choice.documents == 6
    assert choice.difference is None
    assert "the first 6 documents of each task" in done.stderr
    assert "difference" not in done.stderr


def test_a_lack_of_lm_eval_is_one_clear_error(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)  # it, or a package of its own
    words = ["seed.evaluate", str(make_checkpoint()), "--tasks=arc_easy"]
    error = error_of(run_seed(*words, cwd=tmp_path, code=2))
    assert "needs lm-eval, which cannot be imported (ModuleNotFoundError" in error
    assert "pip install --upgrade 'seed-search[tasks]'" in error


def test_an_option_of_tasks_without_tasks_is_refused(tmp_path: Path) -> None:
    error = error_of(run_seed("seed.evaluate", "nowhere", "--tasks=,", cwd=tmp_path, code=2))
    assert "--tasks ,: wanted names, such as arc_easy,hellaswag" in error
    for word in ("--task-limit=3", "--task-batch=2", "--include-path=.", "--confirm-unsafe-code"):
        error = error_of(run_seed("seed.evaluate", "nowhere", word, cwd=tmp_path, code=2))
        assert f"{word.partition('=')[0]}: no task is named" in error
