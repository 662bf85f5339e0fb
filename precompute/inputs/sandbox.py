"""Decoding in a child process, so that a crash, a hang or a lack of memory costs only one input.

    worker                                   decoding process
    SandboxedDecoder.load(content, recipe, …)  →  limits set, kind.load(content, recipe, spec, source)
    Loaded, or ImageError                 ←  pixels and notes, or reason and message

A message (`messages.py`) carries the bytes of the input, or of float32 pixels. Each process is forked from one that has
imported everything and never decodes (`python -m theworld.precompute.inputs.decoding_process`, started once per
worker), so that another is there in milliseconds. A worker may have several: limits, a crash and its blame are of one
process and of its one input.
"""

from __future__ import annotations

import atexit
import functools
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ...pipeline.credentials import secret_names
from ...pipeline.errors import ImageError, WorldModelError
from ...pipeline.failures import FailureReason
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec, video_frames
from ..media.video_times import Window
from ..rollout.kind import Loaded
from ..rollout.kinds import KINDS, at_moments
from .decoding_process import FORK, NUMBER, WAIT
from .messages import receive, send

GUARDED = hasattr(os, "memfd_create")
"""Whether decoding has its own process: on Linux. On other systems the worker decodes."""
START_S = 300.0
"""Seconds for the template process to import its modules on a busy machine."""
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    # keep what an image needed for the next one: else a 1080p JPEG costs 6,000 page faults and half as much CPU again
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_TOP_PAD_": str(2**24),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeLimits:
    """Memory and time that decoding one input may take."""

    memory_bytes: int
    """Address space beyond what the process has before the input."""
    cpu_s: int
    wall_s: float

    @classmethod
    def of(cls, recipe: Recipe, spec: LatentSpec, window: Window | None = None, *, on_a_core: int = 1) -> DecodeLimits:
        """2 GiB (64 megapixels take 1.2), twice the file and the frames; one minute and two seconds per frame.

        Args:
            on_a_core: inputs that are decoded at once on one core, each of which then takes so much longer.
        """
        frames = video_frames(recipe.rollout_steps, stride=recipe.stride, temporal_stride=spec.temporal_stride)
        clip_bytes = 2 * 12 * frames * recipe.height * recipe.width
        seconds = 60 + 2 * frames
        kind = KINDS[recipe.kind]
        file_bytes = 2 * (kind if window is None else at_moments(kind)).max_bytes
        return cls(memory_bytes=2**31 + file_bytes + clip_bytes, cpu_s=seconds, wall_s=3.0 * seconds * on_a_core)


class _Template:
    """The process that decoding processes are forked from. Thread-safe."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        """Held from a request to its answer."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(START_S)
        with theirs:
            command = [sys.executable, "-P", "-m", "theworld.precompute.inputs.decoding_process", str(theirs.fileno())]
            paths = os.pathsep.join(path for path in sys.path if path)  # wherever this process found theworld
            environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths}
            for name in secret_names(environment):  # a decoder that was taken over finds none
                del environment[name]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
            )

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def fork(self) -> _Child:
        """Another decoding process.

        Raises:
            OSError, struct.error: the template is gone, and of no use from here on.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, self._asking:
                socket.send_fds(self.control, [FORK], [theirs.fileno()])
                return _Child(self, ours, NUMBER.unpack(self.control.recv(NUMBER.size))[0])
        except (OSError, struct.error):
            ours.close()
            self.close()
            raise

    def exit_code(self, pid: int) -> int:
        """Wait for a process that it forked, and that ends or is then killed. Until then its number is nobody else's.

        Raises:
            OSError, struct.error: the template is gone, and of no use from here on.
        """
        try:
            with self._asking:
                self.control.send(WAIT + NUMBER.pack(pid))
                return NUMBER.unpack(self.control.recv(NUMBER.size))[0]
        except (OSError, struct.error):
            self.close()  # an answer that comes too late would be taken for that of the next question
            raise

    def close(self) -> None:
        """End the template process at once. The processes that it forked keep running."""
        self.control.close()
        self.process.kill()
        self.process.wait()


@dataclass(eq=False)
class _Child:
    """A decoding process; used by one thread at a time."""

    template: _Template
    channel: socket.socket
    pid: int

    def close(self) -> None:
        """End it at once; a thread that waits for it gets an error."""
        self.channel.close()  # at the end of its socket it ends itself
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)


class SandboxedDecoder:
    """Decoding processes, each replaced when it dies. Thread-safe: each decodes one input at a time.

    They start as they are needed: so many as threads decode at once, up to `most`.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._on_a_core = 1
        self._free = threading.Semaphore(most)
        """Counts the inputs that may be decoded now."""
        self._lock = threading.Lock()
        """Of the template and the processes."""
        self._template: _Template | None = None
        self._children: list[_Child] = []
        self._idle: list[_Child] = []
        """The last one used is taken first: it has memory of its own already."""
        self._owner = os.getpid()

    @property
    def pids(self) -> list[int]:
        """Process ids of the decoding processes there are."""
        return [child.pid for child in self._children]

    def start(self, most: int = 1, *, cores: int | None = None) -> None:
        """Start the template in the background; `load` starts it too if needed.

        Args:
            most: inputs decoded at once from here on, unless it is more already.
            cores: for them; None is one for each.
        """
        with self._lock:
            if cores is not None:
                self._on_a_core = max(self._on_a_core, math.ceil(most / max(1, cores)))
            if most > self._most:
                self._free.release(most - self._most)
                self._most = most
            if GUARDED:
                self._start()

    def load(
        self,
        content: bytes,
        recipe: Recipe,
        spec: LatentSpec,
        source: str,
        window: Window | None = None,
        *,
        limits: DecodeLimits | None = None,
    ) -> Loaded:
        """`KINDS[recipe.kind].load` in a decoding process.

        Args:
            source: the input's name in error messages.
            limits: default `limits` of the recipe.
        Raises:
            ImageError: as of the kind; or reason crash, timeout or memory where decoding ended so.
            WorldModelError: no process can be started.
        """
        if not GUARDED:
            with self._free:
                return KINDS[recipe.kind].load(content, recipe, spec, source, window)
        limits = limits or self.limits(recipe, spec, window)
        decides: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "spec": asdict(spec)}
        decides["window"] = None if window is None else asdict(window)
        request = {**decides, "source": source, **asdict(limits)}
        with self._free:
            child = self._send(request, content)
            return self._answer(child, source, limits)

    def limits(self, recipe: Recipe, spec: LatentSpec, window: Window | None = None) -> DecodeLimits:
        """Of one input, where so many are decoded at once."""
        return DecodeLimits.of(recipe, spec, window, on_a_core=self._on_a_core)

    def close(self) -> None:
        """End all processes at once; a thread that waits for one gets an error."""
        template, self._template = self._template, None
        if template is not None:
            template.close()
        for child in self._children:
            child.close()
        self._children, self._idle = [], []

    def _start(self) -> _Template:
        if self._owner != os.getpid():  # forked off: those processes belong to the parent
            self._template, self._children, self._idle = None, [], []
            self._owner = os.getpid()
        if self._template is not None and self._template.has_ended:
            self._template.close()
            self._template = None
        if self._template is None:
            self._template = _Template()
        return self._template

    def _send(self, request: Mapping[str, Any], content: bytes) -> _Child:
        """Send the input. If the process died while idle, start another: that is not the input's fault."""
        error: Exception | None = None
        for attempt in range(3):
            try:
                child = self._take(anew=attempt > 0)
            except (OSError, struct.error) as caught:
                error = caught
                continue
            try:
                send(child.channel, request, content)
                return child
            except (OSError, ValueError) as caught:
                error = caught
                self._end(child)
        raise WorldModelError(
            f"the process that decodes inputs does not start ({error!r}). See why with: "
            f"{sys.executable} -m theworld.precompute.inputs.sandbox"
        ) from error

    def _take(self, *, anew: bool) -> _Child:
        with self._lock:
            template = self._start()
            if self._idle and not anew:
                return self._idle.pop()
            child = template.fork()
            self._children.append(child)
            return child

    def _answer(self, child: _Child, source: str, limits: DecodeLimits) -> Loaded:
        child.channel.settimeout(limits.wall_s)
        try:
            answer, memory = receive(child.channel)
            if "reason" in answer:
                outcome: Loaded | ImageError = ImageError(FailureReason(answer["reason"]), str(answer["message"]))
            else:
                pixels = memory.view(np.float32).reshape(answer["shape"])
                rate = None if answer["rate"] is None else float(answer["rate"])
                outcome = Loaded(torch.from_numpy(pixels), tuple(map(str, answer["notes"])), rate)
        except TimeoutError as error:
            self._end(child)
            raise ImageError(FailureReason.TIMEOUT, f"{source} was not decoded within {limits.wall_s:g} s") from error
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            code = self._end(child, died=isinstance(error, (EOFError, OSError)))
            if code in (-signal.SIGXCPU, -signal.SIGALRM):
                raise ImageError(
                    FailureReason.TIMEOUT, f"{source} took more than {limits.cpu_s} s of CPU to decode"
                ) from error
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ImageError(FailureReason.CRASH, f"{source} ended the process that decoded it ({how})") from error
        except BaseException:  # its answer must not be taken for that of the next input
            self._end(child)
            raise
        with self._lock:
            self._idle.append(child)
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    def _end(self, child: _Child, *, died: bool = False) -> int:
        """End a decoding process, killed unless it died by itself; returns its exit code, negative for a signal."""
        code = 0
        with suppress(OSError, struct.error):  # the template is gone
            if not died:
                os.kill(child.pid, signal.SIGKILL)  # also where it was stopped
            child.channel.close()
            code = child.template.exit_code(child.pid)
        child.channel.close()
        with self._lock, suppress(ValueError):  # closed meanwhile
            self._children.remove(child)
        return code


@functools.cache
def shared_decoder() -> SandboxedDecoder:
    """The decoder of this process, shared by all callers: it belongs to no recipe."""
    decoder = SandboxedDecoder()
    atexit.register(decoder.close)
    return decoder
