"""A bundled model is loaded only as it was converted."""

import dataclasses
import os
import shutil

import pytest

from musiccli.core import bundled_models
from musiccli.core.bundled_models import BUNDLED_MODELS, bundled_model_folder


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """A model whose conversion is a copy of a small file; returns what each call said."""

    def convert(model, gguf_file, target):
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled_models, "_join_parts", lambda name, target: None)
    monkeypatch.setattr(bundled_models, "_convert", convert)

    def load():
        lines = []
        return bundled_model_folder("smollm2", lines.append), lines

    folder, lines = load()
    assert len(lines) == 1 and load() == (folder, [])
    return folder, load


def tamper(folder):
    """Other bytes of the same length and time."""
    file = folder / "model.safetensors"
    state = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def add_file(folder):
    (folder / "tokenizer_config.json").write_text("{}")


def remove_stamp(folder):
    folder.with_suffix(".stamp").unlink()


def damage_stamp(folder):
    folder.with_suffix(".stamp").write_text('{"sha256": 3}')


@pytest.mark.parametrize("change", [tamper, add_file, remove_stamp, damage_stamp])
def test_a_changed_model_is_converted_anew(converted, change):
    folder, load = converted
    change(folder)
    again, lines = load()
    assert again == folder and "changed or were never verified" in lines[0]
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert load() == (folder, [])


def test_a_copied_cache_is_verified_by_its_hashes(converted, tmp_path, monkeypatch):
    folder, load = converted
    shutil.copytree(tmp_path / "models", tmp_path / "copy" / "models")
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "copy"))
    assert load() == (tmp_path / "copy" / "models" / folder.name, [])


def test_the_converted_files_are_read_by_their_owner_alone(tmp_path, converted):
    folder, _ = converted
    modes = {oct(file.stat().st_mode & 0o777) for file in folder.iterdir()}
    assert modes == {"0o600"} and folder.stat().st_mode & 0o777 == 0o700


def test_a_stamp_stands_beside_the_folder(converted):
    """Within it, it would count as a file of the model, and change the keys of stored scores."""
    folder, _ = converted
    assert {path.suffix for path in folder.parent.iterdir()} == {"", ".stamp", ".lock"}
    assert BUNDLED_MODELS["smollm2"].sha256[:12] in folder.name


def test_a_model_with_a_chat_template_of_before_is_converted_anew(tmp_path, monkeypatch):
    def convert(model, gguf_file, target):
        target.mkdir()
        (target / "chat_template.jinja").write_text(model.chat_template.read_text().rstrip())

    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundled_models, "_join_parts", lambda name, target: None)
    monkeypatch.setattr(bundled_models, "_convert", convert)
    model = BUNDLED_MODELS["gemma3-270m"]
    newer = tmp_path / "newer.jinja"
    newer.write_text("{{ bos_token }}\n")
    bundled_model_folder("gemma3-270m")
    monkeypatch.setitem(
        BUNDLED_MODELS, "gemma3-270m", dataclasses.replace(model, chat_template=newer)
    )
    folder = bundled_model_folder("gemma3-270m")
    assert (folder / "chat_template.jinja").read_text() == "{{ bos_token }}"
