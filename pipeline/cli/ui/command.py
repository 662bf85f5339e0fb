"""`theworld ui`: a page on this computer to drop an image in and see answers with and without its predicted future."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import ConfigError
from .. import options
from ..loading import no_garbage
from ..options import Device, Json, Quiet

if TYPE_CHECKING:
    from ....precompute.live.world import LiveWorld
    from ....train.evaluation.answer import Answer
    from ....train.runs.folder import LoadedRun
    from .server import Event

_MOST_FRAMES = 49
"""Of a longer rollout so many are shown, evenly spread."""


def ui(
    run: options.RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    lm: options.MovedLm = None,
    world: options.MovedWorld = None,
    device: Device = None,
    memory: options.Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Open a page on this computer to ask a run about your own images, and see its answers with and without the future.

    The page listens on 127.0.0.1 alone, and only answers to the token in the address that is printed. Ctrl-C ends it.
    """
    from ....train.runs.meta import read_meta
    from ...progress import Progress, print_json, print_lines

    meta = read_meta(run)
    if meta.recipe.traits.takes != "image":
        raise ConfigError(f"{run} reads videos, and the page takes images: use {run} by `theworld ask`")
    progress = Progress.on_stderr(quiet=quiet)
    progress.say(f"loading {run} …")
    with no_garbage():
        from .server import Server

        where = options.device_name(device)
        answers = _Answers(run, lm=lm, world=world, device=where, memory=memory, progress=progress)
    try:
        server = Server(answers.answer, answers.facts(), port=port)
    except OSError as error:
        raise ConfigError(f"--port {port} cannot be used: {error.strerror}. Leave it out to take a free one") from error
    with server:
        if as_json:
            print_json({"url": server.url})
        else:
            print_lines(f"open {server.url}")
        progress.say("Ctrl-C ends it; the address is a key: give it to nobody")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            progress.say("ended")


class _Answers:
    """A run and its world model, loaded once."""

    def __init__(self, run: Path, *, lm: str | None, world: str | None, progress: Any, **settings: Any) -> None:
        from ....precompute.live.world import LiveWorld
        from ....train.runs.folder import load_run
        from ...progress import Progress

        self._notes: list[str] = []
        self._run: LoadedRun = load_run(run, lm=lm, progress=progress, **settings)
        self._live: LiveWorld = LiveWorld.for_recipe(
            self._run.meta.recipe, world=world, progress=Progress.keeping(self._notes), **settings
        )
        for note in self._notes:
            progress.say(note)

    def facts(self) -> dict[str, object]:
        """What the page says of them."""
        recipe, live = self._run.meta.recipe, self._live
        seconds = recipe.rollout_steps * live.spec.temporal_stride * recipe.stride / live.fps
        horizon = f"{seconds:.1f} seconds ahead" if recipe.traits.is_image_rollout else f"kind {recipe.kind}"
        return {"run": str(self._run.path), "world": live.name, "horizon": horizon, "fps": min(24.0, live.fps)}

    def answer(self, file: Path, question: str, choices: list[str]) -> Iterator[Event]:
        """The answer without the future, the future, and the answer with it."""
        from ....train.evaluation.live_answer import answer_live, warn_if_new
        from ...progress import Progress

        notes: list[str] = []
        progress = Progress.keeping(notes)  # a new one: it says nothing twice
        self._notes.clear()
        offered, steps = choices or None, self._run.meta.reader.num_world_steps
        is_rollout = self._run.meta.recipe.traits.is_image_rollout
        if is_rollout:
            yield {"status": "encoding the image …"}
            first = self._live.encode(file)
            warn_if_new(self._run, 0, progress)
            without = answer_live(self._run, lambda _: first, question, offered, steps=0, image=file, progress=progress)
            yield {"without": _plain(without.answer)}
        yield {"status": "rolling out …"}
        latents = self._live.roll_out(file)
        if is_rollout:
            yield from self._frames(latents[:, :, : 1 + steps])
        yield {"status": "answering …"}
        full = answer_live(self._run, lambda _: latents, question, offered, steps=steps, image=file, progress=progress)
        yield {"with": _plain(full.answer)}
        yield from ({"note": note} for note in dict.fromkeys([*self._notes, *notes]))

    def _frames(self, latents: Any) -> Iterator[Event]:
        from PIL import Image

        from ....precompute.preview.drawing import to_frames
        from ...latents.kinds import seconds_ahead

        if not self._live.has_pictures:
            yield {"note": f"no picture: {self._live.name} decodes no latents"}
            return
        frames = to_frames(self._live.decode(latents)[None])[0]
        last = len(frames) - 1
        count = min(len(frames), _MOST_FRAMES)
        for number in dict.fromkeys(round(n * last / max(1, count - 1)) for n in range(count)):
            content = io.BytesIO()
            Image.fromarray(frames[number]).save(content, "JPEG", quality=92)
            ahead = seconds_ahead(number * self._live.recipe.stride, self._live.fps)
            yield {"frame": base64.b64encode(content.getvalue()).decode(), "label": ahead if number else "now"}


def _plain(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "ranked": [{"choice": ranked.choice, "probability": ranked.probability} for ranked in answer.ranked],
    }
