"""A recipe is what mergekit's documentation says: slices of sources, ranges without their end, whatever models are called."""

import pytest
import yaml

from seed.reporting.recipe import write_recipe


def read(model: str, *kept: int, revision: str | None = None, dtype: str | None = "bfloat16") -> dict:
    return yaml.safe_load(write_recipe(model, revision=revision, kept_layers=kept, dtype=dtype))


def test_each_run_of_kept_layers_is_a_slice() -> None:
    recipe = read("owner/name", 0, 2, 3, 4, 9)
    assert recipe == {
        "slices": [
            {"sources": [{"model": "owner/name", "layer_range": [begin, end]}]}
            for begin, end in ((0, 1), (2, 5), (9, 10))
        ],
        "merge_method": "passthrough",
        "dtype": "bfloat16",
    }
    assert "dtype" not in read("owner/name", 0, dtype=None)


@pytest.mark.parametrize(
    ("model", "revision", "wanted"),
    [
        ("owner/name", "1f" * 20, f"owner/name@{'1f' * 20}"),
        ("/models/a b: #c", None, "/models/a b: #c"),
        ("/models/v1+v2", None, {"model": {"path": "/models/v1+v2"}}),
        ("/models/a@b", None, {"model": {"path": "/models/a@b"}}),
        ("a/b+c", "abc", {"model": {"path": "a/b+c", "revision": "abc"}}),
    ],
)
def test_models_are_named_so_that_mergekit_reads_no_revision_or_adapter_into_them(
    model: str, revision: str | None, wanted: object
) -> None:
    [part] = read(model, 1, revision=revision)["slices"]
    assert part["sources"][0]["model"] == wanted
