"""Calls and keywords by which data could become code, looked for in the syntax tree; forbidden imports are ruff's to find."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import seed

ROOT = Path(seed.__file__).parent
CALLS = {"__import__", "compile", "eval", "exec"}
METHODS = {"import_module", "run_module", "run_path", "PackageImporter"}
SAFE = {
    "allow_pickle": "False",
    "weights_only": "True",
    "shell": "False",
}  # what else they may be is unsafe, or cannot be told
# names of those very modules', never a user's
EXCEPTIONS = {name: ["importlib.import_module()"] for name in ("__main__.py", "optimize/urls.py")}


def find_faults(source: str) -> Iterator[str]:
    """Say what in a module could make code of data."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        owner, _, method = name.rpartition(".")
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in CALLS or method in METHODS:
            yield f"{name}()"
        yield from (f"{name}({word}={given[word]})" for word, safe in SAFE.items() if given.get(word, safe) != safe)
        if given.get("trust_remote_code") == "True":  # else it is what the user said
            yield f"{name}(trust_remote_code=True)"
        if name.endswith("torch.load") and "weights_only" not in given:
            yield f"{name} without weights_only"
        is_model = "automodel" in owner.lower() or "auto_class" in owner
        if method == "from_pretrained" and is_model and given.get("use_safetensors") != "True":
            yield f"{name} without use_safetensors"


def test_no_data_becomes_code() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): list(find_faults(path.read_text(encoding="utf-8")))
        for path in ROOT.rglob("*.py")
    }
    assert len(found) > 50
    assert {name: faults for name, faults in found.items() if faults} == EXCEPTIONS


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "__import__(name)",
        "importlib.import_module(name)",
        "runpy.run_path(p)",
        "subprocess.run('x', shell=True)",
        "np.load(p, allow_pickle=True)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=trusted)",
        "transformers.AutoModelForCausalLM.from_pretrained(p)",
        "find_auto_class(config).from_pretrained(p, use_safetensors=None)",
        "AutoConfig.from_pretrained(p, trust_remote_code=True)",
    ],
)
def test_each_forbidden_form_is_found(source: str) -> None:
    assert len(list(find_faults(source))) == 1


def test_methods_of_these_names_are_fine() -> None:
    assert not list(find_faults("model.eval(); torch.compile(m); re.compile('x'); torch.load(p, weights_only=True)"))
