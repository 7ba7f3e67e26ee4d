"""What must not stand in the source: ways for data to become code. Read from the syntax tree, so that words in texts do not count."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import seed

ROOT = Path(seed.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "pty", "imp"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
    "pandas.read_pickle",
    "importlib.import_module",
    "runpy.run_path",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
}
# torch.distributed pickles what these send, and unpickles whatever comes
OBJECTS = {
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
    "all_gather_object",
    "gather_object",
}
KEYWORDS = {"shell": True, "allow_pickle": True, "weights_only": False}
# Where remote code is a value that the user gave, never a constant.
TRUSTED_CONSTANT = {"trust_remote_code": True}


# What stands nevertheless, and why.
EXCEPTIONS = {
    # names of this very module's, never a user's
    "optimize/urls.py": ["importlib.import_module()"],
    # its compose() checks the grammar of a file and makes no objects of it
    "scoring/tasks.py": ["import yaml"],
}


def find_faults(source: str) -> Iterator[str]:
    """Say what in a module could make code of data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"from {node.module} import"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in BUILTINS or name in ATTRIBUTES or name.rpartition(".")[2] in OBJECTS:
            yield f"{name}()"
        given = {word.arg: word.value for word in node.keywords}
        for word, value in (KEYWORDS | TRUSTED_CONSTANT).items():
            if word in given and isinstance(given[word], ast.Constant) and given[word].value is value:
                yield f"{name}({word}={value})"
        if name.endswith("torch.load") and "weights_only" not in given:
            yield f"{name} without weights_only"
        if name.endswith(("AutoModelForCausalLM.from_pretrained",)) and "use_safetensors" not in given:
            yield f"{name} without use_safetensors"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_data_becomes_code(path: Path) -> None:
    allowed = EXCEPTIONS.get(path.relative_to(ROOT).as_posix(), [])
    assert list(find_faults(path.read_text(encoding="utf-8"))) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "eval('1')",
        "subprocess.run('x', shell=True)",
        "np.load(p, allow_pickle=True)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "dist.broadcast_object_list(said, src=0)",
        "torch.distributed.all_gather_object(found, value)",
        "transformers.AutoModelForCausalLM.from_pretrained(p)",
        "AutoConfig.from_pretrained(p, trust_remote_code=True)",
        "importlib.import_module(name)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert len(list(find_faults(source))) >= 1


def test_methods_of_these_names_are_fine() -> None:
    assert (
        list(find_faults("model.eval(); torch.compile(model); re.compile('x'); torch.load(p, weights_only=True)")) == []
    )
