"""The decoding child: what comes back, and what an input that breaks it costs."""

from __future__ import annotations

import io
import resource
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tests.miniatures.lm import SPEC
from tests.patience import ends_within, eventually, patience
from theworld.pipeline.errors import ImageError, WorldModelError
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.inputs.sandbox import DecodeLimits, SandboxedDecoder
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.rollout.kinds import KINDS

IMAGES = Recipe(world="sha256:" + "0" * 64, height=32, width=48, rollout_steps=1)
VIDEOS = Recipe(world="sha256:" + "0" * 64, height=32, width=48, rollout_steps=1, kind="frames")
GENEROUS = DecodeLimits(memory_bytes=2**32, cpu_s=60, wall_s=60.0)


@pytest.fixture(scope="module")
def decoder() -> Iterator[SandboxedDecoder]:
    decoder = SandboxedDecoder()
    yield decoder
    decoder.close()


def png(width: int, height: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def flat_png(width: int, height: int) -> bytes:
    """A small file that takes long, and much memory, to decode."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    squeezed, row = zlib.compressobj(1), bytes(1 + width * 4)
    data = b"".join(squeezed.compress(row) for _ in range(height)) + squeezed.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def reason(decoder: SandboxedDecoder, content: bytes, limits: DecodeLimits = GENEROUS) -> str:
    with pytest.raises(ImageError) as caught:
        decoder.load(content, IMAGES, SPEC, "x.png", limits=limits)
    assert "x.png" in str(caught.value)
    return caught.value.reason


def child_of(decoder: SandboxedDecoder) -> psutil.Process:
    """Its only decoding process."""
    [pid] = decoder.pids
    return psutil.Process(pid)


def meanwhile(decoder: SandboxedDecoder, number: signal.Signals) -> threading.Thread:
    """Send the child a signal while it decodes."""

    def act() -> None:
        child = child_of(decoder)
        before = child.cpu_times().user
        while child.cpu_times().user < before + 0.05:
            time.sleep(0.002)
        child.send_signal(number)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or waits for its parent to notice."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_child_gives_what_decoding_here_would(decoder: SandboxedDecoder, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", np.random.default_rng(0).integers(0, 256, (9, 40, 60, 3), dtype=np.uint8), 16)
    for content, recipe in ((png(60, 40), IMAGES), ((tmp_path / "v.mp4").read_bytes(), VIDEOS)):
        here = KINDS[recipe.kind].load(content, recipe, SPEC, "x")
        there = decoder.load(content, recipe, SPEC, "x")
        assert torch.equal(here.pixels, there.pixels)
        assert (there.pixels.dtype, there.notes) == (torch.float32, here.notes)


def test_one_child_serves_all_and_says_what_it_refuses(decoder: SandboxedDecoder) -> None:
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    first = decoder.pids
    assert reason(decoder, b"%PDF-1.4") == "format"
    assert reason(decoder, png(60, 40)[:-40]) == "decode"
    decoder.load(png(60, 40), IMAGES, SPEC, "\ud800 ünïcode")
    assert decoder.pids == first


def test_a_decoder_that_dies_costs_its_input_and_is_replaced(decoder: SandboxedDecoder) -> None:
    slow = flat_png(7000, 7000)
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    template, [first] = decoder._template, decoder.pids
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT):
        thread = meanwhile(decoder, number)
        assert reason(decoder, slow) == "crash"
        thread.join()
        assert decoder.load(png(60, 40), IMAGES, SPEC, "x").pixels.shape == (3, 32, 48)
    assert (decoder._template, psutil.pid_exists(first)) == (template, False)


def test_a_child_that_died_with_nothing_to_do_costs_no_input(decoder: SandboxedDecoder) -> None:
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    child = child_of(decoder)
    child.kill()
    assert eventually(lambda: has_ended(child))
    assert decoder.load(png(60, 40), IMAGES, SPEC, "x").pixels.shape == (3, 32, 48)


def test_a_decoder_that_hangs_costs_its_input_and_its_time(decoder: SandboxedDecoder) -> None:
    slow, limits = flat_png(7000, 7000), DecodeLimits(memory_bytes=2**32, cpu_s=60, wall_s=2.0)
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    thread = meanwhile(decoder, signal.SIGSTOP)
    with ends_within(30):  # not the 60 s of the test's other inputs
        assert reason(decoder, slow, limits) == "timeout"
    thread.join()
    assert decoder.load(png(60, 40), IMAGES, SPEC, "x").pixels.shape == (3, 32, 48)


def test_an_input_that_takes_too_much_memory_is_refused_and_the_next_is_fine(decoder: SandboxedDecoder) -> None:
    limits = DecodeLimits(memory_bytes=2**26, cpu_s=60, wall_s=60.0)
    bomb = flat_png(7000, 7000)
    assert len(bomb) < 2**21
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    first = decoder.pids
    assert reason(decoder, bomb, limits) == "memory"
    assert decoder.load(png(60, 40), IMAGES, SPEC, "x").pixels.shape == (3, 32, 48)
    assert decoder.pids == first


def test_an_input_that_takes_too_much_cpu_is_refused(decoder: SandboxedDecoder) -> None:
    limits = DecodeLimits(memory_bytes=2**32, cpu_s=0, wall_s=60.0)
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    outcomes = set()
    for _ in range(6):  # the kernel counts whole seconds
        try:
            decoder.load(flat_png(7900, 7900), IMAGES, SPEC, "x.png", limits=limits)
        except ImageError as error:
            outcomes.add(error.reason)
            break
    assert outcomes == {"timeout"}


def test_an_answer_for_which_no_file_can_be_opened_ends_the_job_and_blames_no_input(decoder: SandboxedDecoder) -> None:
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with ThreadPoolExecutor(1) as threads, ends_within(30):
            answer = threads.submit(decoder.load, flat_png(5000, 5000), IMAGES, SPEC, "x.png", limits=GENEROUS)
            assert eventually(lambda: not decoder._idle)
            time.sleep(0.2)  # the input is sent
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            with pytest.raises(WorldModelError, match="Too many open files"):
                answer.result()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert decoder.load(png(60, 40), IMAGES, SPEC, "x").pixels.shape == (3, 32, 48)


def test_an_answer_that_cannot_be_sent_says_so_at_once(decoder: SandboxedDecoder) -> None:
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    resource.prlimit(child_of(decoder).pid, resource.RLIMIT_FSIZE, (4096, 4096))
    with ends_within(30), pytest.raises(ImageError, match=r"x.png: its pixels cannot be handed over: .*File too large"):
        decoder.load(png(60, 40), IMAGES, SPEC, "x.png", limits=GENEROUS)
    decoder.close()  # that child keeps its limit


def test_decoders_that_share_a_core_have_more_time_by_the_clock_and_no_more_cpu() -> None:
    alone, decoder = DecodeLimits.of(VIDEOS, SPEC), SandboxedDecoder()
    try:
        decoder.start(2, cores=4)
        assert decoder.limits(VIDEOS, SPEC) == alone
        decoder.start(9, cores=2)
        assert decoder.limits(VIDEOS, SPEC) == replace(alone, wall_s=5 * alone.wall_s)
        decoder.start(1, cores=0)
        assert decoder.limits(VIDEOS, SPEC).wall_s == 5 * alone.wall_s, (
            "those that were asked for before may be at work"
        )
    finally:
        decoder.close()


def test_a_child_that_only_seems_to_have_ended_is_killed_and_keeps_nobody_waiting(decoder: SandboxedDecoder) -> None:
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    [child], process = decoder._children, child_of(decoder)
    process.suspend()  # it does not see the end of its socket
    with ends_within(30):
        assert child.template.exit_code(child.pid) == -signal.SIGKILL
        assert decoder.load(png(60, 40), IMAGES, SPEC, "x").pixels.shape == (3, 32, 48)


def test_a_template_that_died_is_replaced(decoder: SandboxedDecoder) -> None:
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    assert decoder._template is not None
    decoder._template.process.kill()
    decoder._template.process.wait()
    child = child_of(decoder)
    child.kill()
    assert eventually(lambda: has_ended(child))
    assert decoder.load(png(60, 40), IMAGES, SPEC, "x").pixels.shape == (3, 32, 48)


def test_both_processes_end_when_their_worker_is_gone(decoder: SandboxedDecoder) -> None:
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    assert decoder._template is not None
    children = [child_of(decoder), psutil.Process(decoder._template.process.pid)]
    decoder._children[0].channel.close()  # all that the end of a process does
    decoder._template.control.close()
    decoder._template.process.wait(patience(20))
    assert not psutil.wait_procs(children, timeout=patience(10))[1]
    decoder.close()


def test_closing_ends_both_processes_and_leaves_no_open_file() -> None:
    decoder, before = SandboxedDecoder(), psutil.Process().num_fds()
    decoder.load(png(60, 40), IMAGES, SPEC, "x")
    child, template = child_of(decoder), decoder._template
    assert template is not None
    held = (decoder._children[0].channel, template.control)  # else they would be closed as nobody holds them any more
    decoder.close()
    assert eventually(lambda: has_ended(child))
    assert template.process.poll() is not None
    assert psutil.Process().num_fds() == before
    assert all(each.fileno() == -1 for each in held)
    decoder.close()  # a second time is fine


def test_several_children_decode_at_once_and_no_more_than_were_asked_for(decoder: SandboxedDecoder) -> None:
    images = [png(60, 40, seed) for seed in range(24)]
    alone = [KINDS["rollout"].load(content, IMAGES, SPEC, "x").pixels for content in images]
    for most in (1, 3):
        decoder.start(most)
        with ThreadPoolExecutor(6) as threads:
            loaded = threads.map(lambda content: decoder.load(content, IMAGES, SPEC, "x"), images)
            assert all(torch.equal(one.pixels, other) for one, other in zip(loaded, alone, strict=True))
        assert len(decoder.pids) <= most
    decoder.start(2)
    assert len(decoder.pids) <= 3


def test_a_child_that_dies_costs_its_own_input_and_none_of_its_neighbours(decoder: SandboxedDecoder) -> None:
    fine = png(60, 40)
    decoder.close()
    decoder.start(3)
    decoder.load(fine, IMAGES, SPEC, "x")
    child = child_of(decoder)
    with ThreadPoolExecutor(2) as threads:
        broken = threads.submit(reason, decoder, flat_png(7000, 7000))
        assert eventually(lambda: not decoder._idle)
        child.suspend()
        neighbours = threads.map(lambda _: decoder.load(fine, IMAGES, SPEC, "x").pixels.shape, range(20))
        assert set(neighbours) == {(3, 32, 48)}
        child.kill()
        assert broken.result() == "crash"
    assert child.pid not in decoder.pids


def test_children_that_all_died_with_nothing_to_do_cost_no_input(decoder: SandboxedDecoder) -> None:
    decoder.start(3)
    with ThreadPoolExecutor(3) as threads:
        assert len(list(threads.map(lambda _: decoder.load(flat_png(2000, 2000), IMAGES, SPEC, "x"), range(6)))) == 6
    assert len(decoder.pids) > 1
    children = [psutil.Process(pid) for pid in decoder.pids]
    for child in children:
        child.kill()
    assert eventually(lambda: all(map(has_ended, children)))
    for _ in range(4):
        assert decoder.load(png(60, 40), IMAGES, SPEC, "x").pixels.shape == (3, 32, 48)
