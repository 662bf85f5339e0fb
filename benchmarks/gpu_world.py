"""What `python -m benchmarks.gpu` measures of a world model: env, build, parity, rollout, variants, decode."""

from __future__ import annotations

import copy
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from theworld.pipeline import Recipe, draw_noise, key_of_bytes
from theworld.pipeline.matmul_speed import measure
from theworld.pipeline.progress import Progress
from theworld.precompute.job.planning.cost import operations_of
from theworld.precompute.rollout.batch import latents_of_batch
from theworld.precompute.rollout.batch_size import default_batch
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds import Operations
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.family import read_configs
from theworld.precompute.worlds.memory import memory_of_batch, memory_of_decoding
from theworld.precompute.worlds.network.compiling import compile_world
from theworld.precompute.worlds.network.precision import full_float32
from theworld.precompute.worlds.source import WorldSource, resolve_world
from theworld.precompute.worlds.wan.vae import load_autoencoder, load_part

from .gpu_rows import COMPUTE_DTYPE, Session, beside_estimate, difference
from .real_sizes import save_language_model, save_world
from .stock import both_forwards, forward_inputs, stock_latents, stock_pipeline

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "triton")
DENOISE_STEPS = 10
_SLOW_SHARE = 0.25  # of the device's own speed: what is planned for a batch that has not run yet
_COMPILE_S = 90.0

Size = tuple[int, int, int]
"""Height and width in pixels, rollout steps."""


def env(session: Session) -> None:
    """The device, the versions, and the two ceilings: products of matrices, and a copy."""
    versions: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    is_gpu = session.device.type == "cuda"
    device = torch.cuda.get_device_name(session.device) if is_gpu else "CPU"
    gib = torch.cuda.mem_get_info(session.device)[1] / 2**30 if is_gpu else None
    session.row("env", what=device, memory_gib=gib, python=platform.python_version(), **versions)
    session.speeds = measure(str(session.device))
    for dtype, speed in session.speeds.items():
        session.row("env", what=f"product of matrices, {dtype}", TFLOP_per_s=speed / 1e12)
    with session.tried("env", what="copy"):
        block = torch.empty(1 << (31 if is_gpu else 24), device=session.device, dtype=torch.int8)
        seconds = session.median_of(block.clone, repeat=5)
        session.row("env", what="copy, read and written", TB_per_s=2 * block.numel() / seconds / 1e12)


def build(session: Session) -> None:
    """Both models with random weights in the layouts of the Hub; how long commands need to know and to load them."""
    for what, save, folder in (
        ("save the world model", save_world, session.world_folder),
        ("save the language model", save_language_model, session.lm_folder),
    ):
        parameters: list[int] = []
        seconds = session.seconds_of(
            lambda: parameters.append(save(folder, session.device, is_toy=session.is_toy))  # noqa: B023 - called at once
        )
        session.row("build", what=what, seconds=seconds, parameters=parameters[0])
        session.free_memory()

    def hash_weights() -> WorldSource:
        return resolve_world(str(session.world_folder), progress=Progress.silent())

    for turn in ("first", "again"):
        session.row("build", what=f"hash the world model, {turn}", seconds=session.seconds_of(hash_weights))
    for turn in ("first", "again"):
        session.drop_world()
        seconds = session.seconds_of(session.world)
        session.row("build", what=f"load the world model, {turn}", seconds=seconds, peak_gib=session.peak_gib())


def parity(session: Session) -> None:
    """The same draws through diffusers' pipeline and through our engine."""
    side, steps, denoise, batch = (32, 2, 3, 2) if session.is_toy else (224, 4, 5, 2)
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    made: dict[str, Tensor] = {}
    for dtype in ("float32", "bfloat16"):
        with session.tried("parity", dtype=dtype):
            made[dtype] = _against_the_pipeline(session, images, dtype, steps, denoise)
    if len(made) == 2:
        what = "bfloat16 against float32: what rounding does to both engines"
        session.row("parity", what=what, **difference(made["bfloat16"], made["float32"]))


def _against_the_pipeline(session: Session, images: Tensor, dtype: str, steps: int, denoise: int) -> Tensor:
    folder, device = session.world_folder, str(session.device)
    settings = {"rollout_steps": steps, "denoise_steps": denoise}
    pipeline = stock_pipeline(
        load_part(CosmosTransformer3DModel, folder, "transformer", device=device, dtype=getattr(torch, dtype)).eval(),
        load_part(AutoencoderKLWan, folder, "vae", device=device).eval(),
        FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )
    stock: list[Tensor] = []
    with full_float32():  # as ours; by itself it takes torch's settings
        stock_s = session.seconds_of(
            lambda: stock.append(stock_latents(pipeline, images, range(len(images)), **settings))
        )
    del pipeline
    session.free_memory()
    world = CosmosWorld.load(folder, device=device, compute_dtype=dtype)

    def ours(count: int) -> Tensor:
        draws = [torch.Generator().manual_seed(seed) for seed in range(count)]
        return world.stock_rollout(images[:count], draws, **settings)

    both: list[Tensor] = []
    ours_s = session.seconds_of(lambda: both.append(ours(len(images))))
    what = "ours against diffusers' pipeline"
    apart = difference(both[0], stock[0])
    session.row("parity", dtype=dtype, what=what, **apart, pipeline_seconds=stock_s, our_seconds=ours_s)
    session.row("parity", dtype=dtype, what="one image against two a batch", **difference(ours(1), both[0][:1]))
    return both[0]


# --- rollouts


def rollout(session: Session) -> None:
    """Whole batches, by size and number of images; the parts of one."""
    sizes: dict[Size, tuple[int, ...]] = {
        (224, 224, 8): (1, 2, 4, 8, 16, 32, 64),
        (224, 224, 4): (16,),
        (432, 768, 8): (1, 2, 4, 8),
        (432, 768, 23): (1, 2),
        (704, 1280, 23): (1,),
    }
    if session.is_toy:
        sizes = {(32, 32, 2): (1, 2)}
    for size, batches in sizes.items():
        for batch in batches:
            _measure_batch(session, size, batch)
    _parts_of_a_batch(session, next(iter(sizes)))


def _measure_batch(session: Session, size: Size, batch: int) -> None:
    recipe, source = recipe_of(session, size), session.source()
    spec, operations = source.latent_spec(), operations_of(source, recipe)
    assert operations is not None, "an architecture that is known"
    is_default = batch == default_batch(recipe, spec, on_gpu=True)
    what = {"size": f"{size[0]}x{size[1]}", "T": 1 + size[2], "batch": batch, "default": is_default}
    ceiling_s = batch * ceiling_of(session, operations)
    expected_s = ceiling_s / _SLOW_SHARE
    if not session.affords("rollout", 3 * expected_s, **what):
        return
    with session.tried("rollout", **what):
        session.world()
        session.free_memory()
        seconds = seconds_of_batch(session, size, batch, repeat=1 if expected_s > 5 else 3)
        need = memory_of_batch(source.family, read_configs(source.folder), recipe, batch)
        session.row(
            "rollout",
            **what,
            seconds_an_image=seconds / batch,
            images_per_s=batch / seconds,
            share_of_ceiling=ceiling_s / seconds,
            **beside_estimate(need and need.total, session.peak_gib()),
        )


def seconds_of_batch(session: Session, size: Size, batch: int, *, repeat: int) -> float:
    """Median time of a batch as a worker makes it: from images to latents on the CPU."""
    world, recipe = session.world(), recipe_of(session, size)
    pixels, keys = [torch.rand(3, *size[:2]) * 2 - 1 for _ in range(batch)], _keys(batch)
    return session.median_of(
        lambda: latents_of_batch(KINDS["rollout"], world, pixels, keys, recipe, batch), repeat=repeat
    )


def _parts_of_a_batch(session: Session, size: Size) -> None:
    recipe, world = recipe_of(session, size), session.world()
    batch = 2 if session.is_toy else 16
    images = torch.rand(batch, 3, *size[:2]) * 2 - 1
    shape = session.source().latent_spec().sample_shape(*size)
    observed, noise = world.encode(images), draw_noise(recipe, _keys(batch), shape).to(session.device)
    latents = world.denoise(observed, noise, denoise_steps=2)
    parts = {
        "encode the images": lambda: world.encode(images),
        "draw the noise and move it over": lambda: draw_noise(recipe, _keys(batch), shape).to(session.device),
        "all forwards": lambda: world.denoise(observed, noise, denoise_steps=recipe.denoise_steps),
        "latents to the CPU": lambda: latents.float().cpu(),
    }
    for what, work in parts.items():
        session.row("rollout", what=what, batch=batch, seconds=session.median_of(work))


def recipe_of(session: Session, size: Size) -> Recipe:
    """Of the world model that was built; ten denoise steps, three in a toy."""
    return Recipe(
        world=session.source().identity,
        height=size[0],
        width=size[1],
        rollout_steps=size[2],
        denoise_steps=3 if session.is_toy else DENOISE_STEPS,
        compute_dtype=COMPUTE_DTYPE,
    )


def ceiling_of(session: Session, operations: Operations) -> float:
    """Seconds of one input where all operations are done as fast as products of matrices; as a plan counts them."""
    return operations.encode / session.speeds["float32"] + operations.predict / session.speeds[COMPUTE_DTYPE]


def _keys(count: int) -> list[str]:
    return [key_of_bytes(bytes([number])) for number in range(count)]


# --- what else could be done


def variants(session: Session) -> None:
    """One forward of diffusers, ours, with each attention and compiled; the encoder in other precisions."""
    for batch in (1, 2) if session.is_toy else (1, 16):
        with session.tried("variants", batch=batch, what="forward"):
            _measure_forwards(session, batch)
    with session.tried("variants", what="encode"):
        _measure_encoders(session)
    with session.tried("variants", what="compiled"):
        _measure_compiled(session)
    session.drop_world()  # its blocks are compiled


def _measure_forwards(session: Session, batch: int) -> None:
    dtype = getattr(torch, COMPUTE_DTYPE)
    folder, device = session.world_folder, str(session.device)
    stock = load_part(CosmosTransformer3DModel, folder, "transformer", device=device, dtype=dtype).eval()
    given = (part.to(session.device) for part in forward_inputs(stock, batch, *_latent_size(session)))
    theirs, ours = both_forwards(stock, *given)
    expected, our_s = theirs(), session.median_of(ours)
    same = torch.equal(ours(), expected)
    session.row("variants", batch=batch, what="our forward", seconds_a_forward=our_s, same_bits=same)
    seconds = session.median_of(theirs)
    figures = {"seconds_a_forward": seconds, "times_as_fast": our_s / seconds}
    session.row("variants", batch=batch, what="diffusers' forward", **figures)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        what = f"our forward, {backend.name.lower()}"
        if session.device.type != "cuda":
            session.row("variants", batch=batch, what=what, left_out="a kernel of a GPU")
            continue
        with session.tried("variants", batch=batch, what=what), sdpa_kernel([backend]):
            seconds = session.median_of(ours)
            figures = {"seconds_a_forward": seconds, "times_as_fast": our_s / seconds}
            session.row("variants", batch=batch, what=what, **figures, **difference(ours(), expected))


def _measure_encoders(session: Session) -> None:
    vae, side, batch = session.world().vae, *((32, 2) if session.is_toy else (224, 16))
    images = (torch.rand(batch, 3, 1, side, side) * 2 - 1).to(session.device)

    @torch.inference_mode()
    def encode(coder: AutoencoderKLWan, dtype: torch.dtype = torch.float32) -> Tensor:
        return coder.encode(images.to(dtype), return_dict=False)[0].mode()

    with full_float32():
        exact = encode(vae)
        session.row("variants", batch=batch, what="encode, as we do", seconds=session.median_of(lambda: encode(vae)))
    half = torch.nn.Module.to(copy.deepcopy(vae), torch.bfloat16)  # its own warns of parts that it has not
    channels_last = copy.deepcopy(vae)
    for part in channels_last.modules():
        if isinstance(part, torch.nn.Conv3d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last_3d)
    for what, work in {
        "encode, with torch's own settings (TF32 on a GPU)": lambda: encode(vae),
        "encode, the same, channels last": lambda: encode(channels_last),
        "encode, bfloat16": lambda: encode(half, torch.bfloat16),
    }.items():
        with session.tried("variants", batch=batch, what=what):
            seconds = session.median_of(work)
            session.row("variants", batch=batch, what=what, seconds=seconds, **difference(work(), exact))


def _measure_compiled(session: Session) -> None:
    batch, what = 2 if session.is_toy else 16, "rollout of compiled blocks"
    if session.device.type != "cuda":
        session.row("variants", batch=batch, what=what, left_out="minutes on a CPU; benchmarks.forward --compile")
        return
    if not session.affords("variants", _COMPILE_S, batch=batch, what=what):
        return
    world, (frames, height, width) = session.world(), _latent_size(session)
    observed = world.encode(torch.rand(batch, 3, 8 * height, 8 * width) * 2 - 1)
    noise = torch.randn(batch, observed.shape[1], frames, height, width, device=session.device)

    def denoise() -> Tensor:
        return world.denoise(observed, noise, denoise_steps=DENOISE_STEPS)

    before, plain_s = denoise(), session.median_of(denoise)
    session.row("variants", batch=batch, what="rollout, not compiled", seconds=plain_s)
    compile_world(world, str(session.device))
    first_s = session.seconds_of(denoise)
    seconds = session.median_of(denoise)
    apart = difference(denoise(), before)
    figures = {"seconds": seconds, "times_as_fast": plain_s / seconds, "first_seconds": first_s}
    session.row("variants", batch=batch, what=what, **figures, **apart)


def _latent_size(session: Session) -> Size:
    """Frames, rows and columns of a rollout's latent."""
    return (3, 4, 4) if session.is_toy else (9, 28, 28)


# --- pictures of latents


def decode(session: Session) -> None:
    """Clips through the decoder, as `cache preview` makes them: time and memory of one sample."""
    session.drop_world()
    source = session.source()
    coder = load_autoencoder(source.folder, device=str(session.device))
    sizes = ((32, 32, 2),) if session.is_toy else ((224, 224, 8), (432, 768, 8), (432, 768, 23))
    for height, width, steps in sizes:
        what = {"size": f"{height}x{width}", "T": 1 + steps}
        if not session.affords("decode", 20, **what):
            continue
        with session.tried("decode", **what):
            latents = torch.randn(1, coder.spec.channels, 1 + steps, height // 8, width // 8)
            seconds = session.median_of(lambda: coder.decode(latents), repeat=1)  # noqa: B023 - called at once
            need = memory_of_decoding(source.family, read_configs(source.folder), 1 + steps, height, width)
            memory = beside_estimate(need and need.total, session.peak_gib())
            session.row("decode", **what, seconds=seconds, **memory)
