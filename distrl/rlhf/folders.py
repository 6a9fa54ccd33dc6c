"""What is wrong with a model's folder that shows before a library reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distrl.errors import BadInput, cause, translated

CONFIG = "config.json"
OWN_CODE = "brings code of its own, which is not run; convert it to a family that transformers has itself"


def require_folder(folder: str | Path) -> Path:
    """The folder; BadInput where there is none, a model's name on a hub among others."""
    path = Path(folder)
    if path.is_dir():
        return path
    name = str(folder)
    if path.exists():
        raise BadInput(f"{name} must be a folder that save_pretrained wrote, and is a file")
    is_name = name.count("/") <= 1 and not name.startswith((".", "~", "/"))
    wanted = name if is_name else "OWNER/NAME"
    raise BadInput(
        f"{name}: no such folder; model names are not downloaded: huggingface-cli download {wanted} --local-dir FOLDER, "
        "and give that folder"
    )


def require_model_folder(folder: str | Path) -> Path:
    """The folder; BadInput where there is none, or it is a run directory, which has its model in a folder below."""
    path = require_folder(folder)
    if (path / "checkpoints").is_dir() and (path / "model" / CONFIG).is_file():
        raise BadInput(f"{path} is a run directory and not a model's folder; give {path / 'model'}")
    return path


def require_one_label(folder: str | Path) -> None:
    """BadInput for a sequence classifier of several labels, which has no single score for a text."""
    from safetensors import safe_open

    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                names = list(file.keys())
                heads = [one for one in names if one.endswith(("score.weight", "classifier.out_proj.weight"))]
                shapes = [file.get_slice(name).get_shape() for name in heads]
        except Exception as error:  # a damaged file has its own message
            raise BadInput(f"{path} cannot be read: {cause(error)}") from error
        for shape in shapes:
            if shape[0] != 1:
                raise BadInput(
                    f"{folder} must have num_labels=1, one score for a text, and has num_labels={shape[0]}: it is a "
                    "classifier; train it with num_labels=1, or use it in a --reward-function"
                )


def json_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; BadInput where that is no object."""
    with translated(f"{path} must be a JSON object"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"got a {type(found).__name__}")
        return found


def configuration(folder: Path) -> Any:
    """The configuration in a folder's config.json, None where transformers does not know its family. BadInput for a bad one."""
    from transformers import CONFIG_MAPPING, AutoConfig

    family = json_object(folder / CONFIG).get("model_type")
    if family not in CONFIG_MAPPING:
        return None
    with translated(f"{folder / CONFIG} is not a valid configuration of a {family} model"), quiet():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers shows no progress of its own on standard error, and leaves it to us to say what is missing."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
