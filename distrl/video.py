"""A video of one episode, written frame by frame while it is played: whole, or not at all.

render() -> frames [H, W, 3] uint8 -> padded to the first one's (even) size -> FILE.part.mp4 -> FILE.mp4
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl.errors import BadInput, translated

Frame = NDArray[np.uint8]  # [H, W, 3]
FORMATS = (".mp4", ".gif")
DEFAULT_FPS = 30.0
MAX_GIF_BYTES = 2**31  # of pictures: a GIF is put together in memory
CANNOT = "--video: cannot write"
PICTURES = 'with render_mode="rgb_array", render() must give an array [height, width, 3] of uint8'


def require_video(path: Path) -> None:
    """Raises BadInput where no video can be written to `path`: its ending, the writer, or its folder."""
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"--video must end in {' or '.join(FORMATS)}, got {path}")
    if importlib.util.find_spec("imageio") is None:
        raise BadInput("--video needs imageio: pip install 'distrl[video]'")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise BadInput("--video FILE.mp4 needs imageio-ffmpeg: pip install 'distrl[video]', or give FILE.gif")
    if path.is_dir():
        raise BadInput(f"--video must be a file, got the folder {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BadInput(f"{CANNOT} {path}: {error.strerror}; name a file in another folder") from error


def fps_of(metadata: Any) -> float:
    """Frames per second of an env's metadata; 30 where it does not say, or says what is no rate."""
    fps = metadata.get("render_fps") if isinstance(metadata, dict) else None
    if isinstance(fps, int | float | np.integer | np.floating) and math.isfinite(fps) and fps > 0:
        return float(fps)
    return DEFAULT_FPS


@contextlib.contextmanager
def video(path: Path, fps: float) -> Iterator[VideoWriter]:
    """A writer for `path`. Nothing is left there where the block raises, or where no frame was added (BadInput)."""
    part = path.with_name(f".{path.stem}.part{path.suffix.lower()}")
    writer = VideoWriter(part, fps)
    try:
        yield writer
        writer.close()
        part.replace(path)
    finally:
        writer.abandon()
        part.unlink(missing_ok=True)


class VideoWriter:
    """Frames of one size, that of the first; an MP4's is even, as its pixel format wants it."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self.is_gif = path.suffix == ".gif"
        self.size: tuple[int, int] | None = None
        self.frames: list[Frame] = []  # of a GIF
        self.num_bytes = 0
        self._film: Any = None

    def add(self, rendered: Any) -> None:
        """What `render()` gave: a frame or a list of frames. BadInput where it is none."""
        for frame in frames_of(rendered):
            if self.size is None:
                height, width = frame.shape[:2]
                self.size = (height, width) if self.is_gif else (height + height % 2, width + width % 2)
            self._write(fitted(frame, self.size))

    def _write(self, frame: Frame) -> None:
        if self.is_gif:
            self.num_bytes += frame.nbytes
            if self.num_bytes > MAX_GIF_BYTES:
                raise BadInput("--video FILE.gif: the episode is too long for a GIF; give FILE.mp4")
            self.frames.append(frame)
            return
        with translated(f"{CANNOT} {self.path}"):
            if self._film is None:
                import imageio.v2 as imageio

                self._film = imageio.get_writer(
                    self.path, format="FFMPEG", mode="I", fps=self.fps, macro_block_size=1
                )
            self._film.append_data(frame)

    def close(self) -> None:
        """The whole file. BadInput where there was no frame."""
        if self.size is None:
            raise BadInput(f"--video: the env's render() gave no frame; {PICTURES}")
        with translated(f"{CANNOT} {self.path}"):
            if self.is_gif:
                import imageio.v3 as imageio

                imageio.imwrite(self.path, np.stack(self.frames), duration=1000 / self.fps, loop=0)
            else:
                film, self._film = self._film, None
                film.close()

    def abandon(self) -> None:
        """Ends the writer's process, where it still runs."""
        if self._film is not None:
            film, self._film = self._film, None
            with contextlib.suppress(Exception):  # half a film: it is thrown away
                film.close()


def frames_of(rendered: Any) -> list[Frame]:
    """The frames of what an env's `render()` gave. Grey, RGBA, bool and floats in [0, 1] become RGB of uint8."""
    if isinstance(rendered, list | tuple) and not (len(rendered) and np.isscalar(rendered[0])):
        return [frame for one in rendered for frame in frames_of(one)]
    if isinstance(rendered, dict):
        keys = ", ".join(map(repr, rendered))
        raise BadInput(f"--video: the env's render() gave a dict ({keys}); {PICTURES}, or a list of them")
    if rendered is None or isinstance(rendered, str):
        raise BadInput(f"--video: the env's render() gave {type(rendered).__name__}; {PICTURES}")
    with translated("--video: the env's render()", PICTURES):
        frame = np.asarray(rendered)
    if frame.ndim == 2:
        frame = frame[:, :, None]
    if frame.ndim != 3 or frame.shape[2] not in (1, 3, 4) or not frame.size:
        raise BadInput(f"--video: the env's render() gave {frame.dtype} of shape {frame.shape}; {PICTURES}")
    frame = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[:, :, :3]
    if frame.dtype == np.uint8:
        return [frame]
    low, high = float(frame.min()), float(frame.max())
    whole = frame.dtype.kind in "iu" and low >= 0 and high <= 255
    if not whole and not (frame.dtype.kind in "fb" and low >= 0 and high <= 1):
        raise BadInput(
            f"--video: the env's render() gave {frame.dtype} from {low:g} to {high:g}; {PICTURES}, or floats in [0, 1]"
        )
    return [(frame if whole else np.round(frame * 255.0)).astype(np.uint8)]


def fitted(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame at the top left of a black picture of `size` (height, width), cut where it is larger."""
    if frame.shape[:2] == size:
        return frame
    picture = np.zeros((*size, 3), np.uint8)
    height, width = min(size[0], frame.shape[0]), min(size[1], frame.shape[1])
    picture[:height, :width] = frame[:height, :width]
    return picture
