"""Which engine answers for a local model, and what OpenVINO does beside answering."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import toys

from musiccli.core.errors import InputError
from musiccli.cpu import SWITCH
from musiccli.llm.call import Call
from musiccli.llm.local import choice
from musiccli.llm.local.choice import runs_on_openvino, weights_and_engine

needs_openvino = pytest.mark.skipif(
    not find_spec("openvino_genai"),
    reason="openvino-genai is not installed (pip install 'musiccli[openvino]')",
)


@pytest.fixture
def installed(monkeypatch):
    """A machine with OpenVINO and without a GPU."""
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(choice, "find_spec", lambda name: name == "openvino_genai" or None)
    monkeypatch.setattr(choice, "GPU_DEVICES", ())


def test_it_answers_for_the_model_that_it_can_read(installed, tmp_path):
    assert runs_on_openvino("local/smollm2")
    assert not runs_on_openvino("local/gemma3-270m")
    assert not runs_on_openvino(f"local/{toys.backbone(tmp_path / 'smollm2')}")


def test_it_does_not_answer_where_it_is_not_installed(installed, monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert not runs_on_openvino("local/smollm2")


def test_it_does_not_answer_where_torch_alone_is_wanted(installed, monkeypatch):
    monkeypatch.setenv(SWITCH, "1")
    assert not runs_on_openvino("local/smollm2")


@pytest.mark.parametrize("usable", [True, False])
def test_a_gpu_goes_first_if_torch_can_use_it(installed, monkeypatch, tmp_path, usable):
    monkeypatch.setattr(choice, "GPU_DEVICES", (str(tmp_path),))
    monkeypatch.setattr("torch.cuda.is_available", lambda: usable)
    assert runs_on_openvino("local/smollm2") is not usable


def test_the_engines_do_not_share_replies(installed, monkeypatch):
    def key() -> bytes:
        call = Call("local/smollm2", ("x", "user", 0), weights=weights_and_engine("local/smollm2"))
        return call.key

    with_openvino = key()
    monkeypatch.setenv(SWITCH, "1")
    assert key() == Call("local/smollm2", ("x", "user", 0)).key != with_openvino


@needs_openvino
@pytest.mark.slow
def test_a_file_that_it_cannot_read_is_one_line_and_nobody_is_told(tmp_path):
    """Importing it would count the import in the home folder, and tell Google Analytics."""
    script = (
        "import sys; from pathlib import Path; from musiccli.core.errors import InputError; "
        "from musiccli.llm.local.openvino_batch import OpenVinoBatch\n"
        "try: OpenVinoBatch(Path(sys.argv[1]), 1)\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "none.gguf")],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.startswith("OpenVINO fails: ") and done.stdout.count("\n") == 1
    assert done.stdout.endswith("; with MUSIC_PLAIN_TORCH=1 PyTorch does the work\n")
    assert [*tmp_path.iterdir()] == []


def test_the_file_of_a_bundled_model_is_checked(monkeypatch, tmp_path):
    from musiccli.core import bundled_models

    file = tmp_path / "changed.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(bundled_models, "_part_files", lambda name: [file])
    with pytest.raises(InputError, match="local/smollm2: the installed file is not the published"):
        bundled_models.bundled_gguf_file("local/smollm2")
