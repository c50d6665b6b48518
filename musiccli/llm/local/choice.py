"""Which engine answers for a model in this process."""

from importlib.util import find_spec
from pathlib import Path

from musiccli.core.bundled_models import BUNDLED_MODELS, folder_fingerprint
from musiccli.cpu import plain_torch

OPENVINO = "openvino"
# GPUs of NVIDIA, of AMD, and of Windows below its Linux. Importing torch to ask it takes seconds.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def runs_on_openvino(model: str) -> bool:
    """Whether OpenVINO answers for a `local/` model: where it is installed, and no GPU is there.

    It reads the bundled files whose architecture it knows. MUSIC_PLAIN_TORCH turns it off.
    """
    bundled = BUNDLED_MODELS.get(model.removeprefix("local/"))
    return (
        bundled is not None
        and bundled.openvino
        and not plain_torch()
        and find_spec("openvino_genai") is not None
        and not _has_gpu()
    )


def weights_and_engine(model: str) -> str | None:
    """What tells apart replies under one `local/` name, for the key of a call in the cache.

    Returns:
        "openvino" where that answers, a hash of the files where the model is a folder, None for a
        bundled model on PyTorch.
    """
    return OPENVINO if runs_on_openvino(model) else folder_fingerprint(model)


def _has_gpu() -> bool:
    if not any(Path(device).exists() for device in GPU_DEVICES):
        return False
    import torch

    return torch.cuda.is_available()
