"""What weights in 8 bits would change in the worldlet's rollouts: why there is no such setting (docs/worlds.md).

python -m benchmarks.eight_bits

The weights of all linear layers are rounded here, each row by its largest. What torchao does is measured where it is:

pip install --no-deps --target ao torchao==0.18.0 && PYTHONPATH=ao python -m benchmarks.eight_bits
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from theworld.precompute.media.images import load_image
from theworld.precompute.worldlet.scenes.files import write_scenes
from theworld.precompute.worlds.builtin import WEIGHTS
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld

SCENES, SIDE, FRAMES, DENOISE_STEPS = 6, 64, 9, 10


def main() -> None:
    torch.set_num_threads(1)
    images, noise = _scenes(), torch.randn(SCENES, 16, FRAMES, 8, 8, generator=torch.Generator().manual_seed(0))
    other_noise = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))

    def rolled(dtype: str, change: Callable[[nn.Module], object] | None = None, noise: Tensor = noise) -> Tensor:
        world = CosmosWorld.load(WEIGHTS, compute_dtype=dtype)
        if change is not None:
            change(world.transformer)
        return world.denoise(world.encode(images), noise, denoise_steps=DENOISE_STEPS)[:, :, 1:]

    exact = rolled("float32")
    print(f"predicted frames have a standard deviation of {exact.std():.3f}; differences to those of float32:")
    print("\n| weights | largest | rms | x bfloat16 |\n|---|---|---|---|")
    unit = (rolled("bfloat16") - exact).square().mean().sqrt()
    ways: dict[str, tuple[str, Callable[[nn.Module], object] | None]] = {
        "bfloat16, as stored": ("bfloat16", None),
        "int8, computed in float32": ("float32", _to_int8),
        "int8, computed in bfloat16": ("bfloat16", _to_int8),
        "float8 (e4m3), computed in bfloat16": ("bfloat16", _to_float8),
    }
    if find_spec("torchao") is not None:
        torchao = import_module("torchao.quantization")
        config = torchao.Int8WeightOnlyConfig()
        ways[f"int8 of torchao {version('torchao')}"] = ("bfloat16", lambda network: torchao.quantize_(network, config))
    for name, (dtype, change) in ways.items():
        _print_row(name, rolled(dtype, change) - exact, unit)
    _print_row("float32, another draw of the noise", rolled("float32", noise=other_noise) - exact, unit)


def _scenes() -> Tensor:
    with TemporaryDirectory() as folder:
        write_scenes(Path(folder), splits={"train": SCENES}, seed=0, families=["buckets"], jobs=1)
        files = sorted(Path(folder).rglob("*.png"))[:SCENES]
        return torch.stack([load_image(file.read_bytes(), SIDE, SIDE, "cover", source=file.name) for file in files])


def _print_row(name: str, difference: Tensor, unit: Tensor) -> None:
    rms = difference.square().mean().sqrt()
    print(f"| {name} | {difference.abs().max():.2g} | {rms:.2g} | {rms / unit:.1f} |")


def _to_int8(network: nn.Module) -> None:
    def rounded(weight: Tensor) -> Tensor:
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        return (weight.float() / scale).round() * scale

    _replace(network, rounded)


def _to_float8(network: nn.Module) -> None:
    def rounded(weight: Tensor) -> Tensor:
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
        return (weight.float() / scale).to(torch.float8_e4m3fn).float() * scale

    _replace(network, rounded)


def _replace(network: nn.Module, rounded: Callable[[Tensor], Tensor]) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = rounded(module.weight.data).to(module.weight.dtype)


if __name__ == "__main__":
    main()
