"""What stands beside weights goes along as it is."""

from pathlib import Path

from seed.models.companions import copy_companions


def test_companions_are_copied_and_nothing_else(tmp_path: Path) -> None:
    original, target = tmp_path / "original", tmp_path / "target"
    for folder in (original / "additional_chat_templates", original / "tokenizer_files", target):
        folder.mkdir(parents=True)
    names = {
        *{"tokenizer.model", "tokenizer_config.json", "merges.txt", "LICENSE-2.0.txt", "NOTICE"},
        *{"additional_chat_templates/tool_use.jinja", "video_preprocessor_config.json", "preprocessor_config.json"},
    }
    others = {"model.safetensors", "config.json", "README.md", "modeling_own.py", "seed.json", "tokenizer_files/a"}
    for name in names | others:
        (original / name).write_text(f"original {name}")
    (target / "tokenizer_config.json").write_text("written anew")
    (tmp_path / "blob").write_text("from the hub")
    (original / "USE_POLICY.md").symlink_to(tmp_path / "blob")
    copy_companions(original, target)
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert found == {name: f"original {name}" for name in names} | {"USE_POLICY.md": "from the hub"}
    assert not (target / "USE_POLICY.md").is_symlink()
