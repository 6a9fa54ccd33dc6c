"""What is wrong with a model's folder that shows before a library reads it."""

from __future__ import annotations

from pathlib import Path

from distrl.errors import BadInput, cause


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
