"""The decoding process and its template: one input at a time, within limits of memory and time."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.latents.recipe import Recipe, parse_recipe
from ...pipeline.latents.spec import LatentSpec
from ..media.video_times import Window
from ..rollout.kinds import KINDS
from .messages import receive, send

NUMBER = struct.Struct("<q")
FORK, WAIT = b"f", b"w"
"""Requests to the template: fork a decoding process; wait for the one of this number to end."""
_GRACE_S = 5.0
"""Seconds after the time limit until a process without a worker ends itself."""
_ENDING_S = 2.0
"""Seconds for a process that seems to have ended to do so."""


@functools.lru_cache(maxsize=4)
def _recipe_of(text: str) -> Recipe:
    return parse_recipe(json.loads(text), where="the worker's recipe")


def _serve(worker: socket.socket) -> None:
    """The decoding process: inputs in, pixels out, until the worker is gone."""
    while True:
        try:
            request, memory = receive(worker)
        except (EOFError, OSError):
            return
        recipe = _recipe_of(json.dumps(request["recipe"]))
        spec = LatentSpec(**request["spec"])
        source = str(request["source"])
        window = None if request["window"] is None else Window(**request["window"])
        content = memory.tobytes()
        del memory
        pixels = np.empty(0, np.float32)
        _limit(request["memory_bytes"], request["cpu_s"], request["wall_s"])
        try:
            loaded = KINDS[recipe.kind].load(content, recipe, spec, source, window)
            pixels = np.ascontiguousarray(loaded.pixels.numpy(), np.float32)
            answer: dict[str, Any] = {"shape": pixels.shape, "notes": loaded.notes, "rate": loaded.rate}
        except ImageError as error:
            answer = {"reason": error.reason, "message": str(error)[:2000]}
        except MemoryError:
            answer = {"reason": FailureReason.MEMORY, "message": f"{source} takes more memory than one input may have"}
        except Exception as error:  # a mistake of ours, and no reason to end the job
            message = f"{source}: {type(error).__name__}: {str(error)[:1000]}"
            answer = {"reason": FailureReason.ERROR, "message": message}
        _limit(None, None, 0.0)
        del content
        try:
            send(worker, answer, pixels)
        except OSError as error:
            message = f"{source}: its pixels cannot be handed over: {error}"
            try:
                send(worker, {"reason": FailureReason.ERROR, "message": message})
            except OSError:
                return


def _limit(memory_bytes: int | None, cpu_s: int | None, wall_s: float) -> None:
    """Limit memory and time from here on; None lifts a limit."""
    used = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(usage.ru_utime + usage.ru_stime) + 1
    for which, bound in (
        (resource.RLIMIT_AS, None if memory_bytes is None else used + memory_bytes),
        (resource.RLIMIT_CPU, None if cpu_s is None else cpu + cpu_s),
    ):
        most = resource.getrlimit(which)[1]
        soft = most if bound is None else bound if most == resource.RLIM_INFINITY else min(bound, most)
        resource.setrlimit(which, (soft, most))
    signal.setitimer(signal.ITIMER_REAL, wall_s + _GRACE_S if wall_s else 0.0)


def _template(control: socket.socket) -> None:
    """The template process, which is forked: it has imported everything and touches no input."""
    Image.init()  # all of Pillow's formats, or each decoding process would import them
    while True:
        request, fds, _, _ = socket.recv_fds(control, 1 + NUMBER.size, 1)
        if request == FORK:
            pid = os.fork()
            if pid == 0:
                control.close()
                with socket.socket(fileno=fds[0]) as worker:
                    _serve(worker)
                os._exit(0)
            os.close(fds[0])
            control.send(NUMBER.pack(pid))
        elif request[:1] == WAIT:
            pid = NUMBER.unpack(request[1:])[0]
            control.send(NUMBER.pack(_exit_code(pid)))
        else:
            return


def _exit_code(pid: int) -> int:
    """Of a child that is about to end. One that was taken over may only look so: it is killed."""
    deadline = time.monotonic() + _ENDING_S
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.002)
    if ended[0] == 0:
        os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended[1])


def main() -> None:
    """The template. Its end of the worker's socket is the file descriptor it was given."""
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        print("theworld starts this process by itself; it starts, so it is not the problem")
        return
    # what ends the job in order may be sent to all its processes; it ends this when it has ended its batch
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # Pillow's, of inputs that are used or refused in our own words
    torch.set_num_threads(1)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _template(control)


if __name__ == "__main__":
    main()
