"""Known accelerators by name, with the memory and speed that a plan needs. Loads no torch.

Figures are of the vendors' data sheets: memory in GB (of 10^9 bytes, as they count), the peak of dense matrix products
in bfloat16 with sums in float32 (data sheets often state twice that, for matrices of which half is zeros), and of
float32 in full precision, which has no TF32 in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ConfigError

_NVIDIA = "https://www.nvidia.com/en-us"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_BLACKWELL = "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
_AMD = "https://www.amd.com/en/products/accelerators/instinct"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU model: its name, memory and speed."""

    name: str
    memory_gb: float
    bfloat16: float
    """10^12 operations a second, where a multiply and an add are two."""
    float32: float
    source: str
    also: str = ""
    """Further words that its driver or people use for it."""


ACCELERATORS = (
    Accelerator("H100 80GB", 80, 989.4, 67, f"{_NVIDIA}/data-center/h100/", "sxm hbm3"),
    Accelerator("H100 PCIe 80GB", 80, 756, 51, f"{_NVIDIA}/data-center/h100/"),
    Accelerator("H100 NVL 94GB", 94, 835.5, 60, f"{_NVIDIA}/data-center/h100/"),
    Accelerator("H200 141GB", 141, 989.4, 67, f"{_NVIDIA}/data-center/h200/", "sxm"),
    Accelerator("H200 NVL 141GB", 141, 835.5, 60, f"{_NVIDIA}/data-center/h200/"),
    Accelerator("GH200 96GB", 96, 989.4, 67, f"{_NVIDIA}/data-center/grace-hopper-superchip/", "120gb 480gb"),
    Accelerator("B200 180GB", 180, 2250, 75, f"{_NVIDIA}/data-center/hgx/", "sxm 192gb"),
    Accelerator("GB200 186GB", 186, 2500, 80, f"{_NVIDIA}/data-center/gb200-nvl72/", "192gb"),
    Accelerator("B300 288GB", 288, 2250, 75, f"{_NVIDIA}/data-center/hgx/", "sxm 270gb"),
    Accelerator("A100 80GB", 80, 312, 19.5, f"{_NVIDIA}/data-center/a100/", "sxm pcie"),
    Accelerator("A100 40GB", 40, 312, 19.5, f"{_NVIDIA}/data-center/a100/", "sxm pcie"),
    Accelerator("A40 48GB", 48, 149.7, 37.4, f"{_NVIDIA}/data-center/a40/", "pcie"),
    Accelerator("A30 24GB", 24, 165, 10.3, f"{_NVIDIA}/data-center/products/a30-gpu/", "pcie"),
    Accelerator("A10 24GB", 24, 125, 31.2, f"{_NVIDIA}/data-center/products/a10-gpu/", "pcie"),
    Accelerator("L40S 48GB", 48, 362, 91.6, f"{_NVIDIA}/data-center/l40s/"),
    Accelerator("L40 48GB", 48, 181, 90.5, f"{_NVIDIA}/data-center/l40/"),
    Accelerator("L4 24GB", 24, 121, 30.3, f"{_NVIDIA}/data-center/l4/"),
    Accelerator("RTX 6000 Ada 48GB", 48, 364.2, 91.1, f"{_NVIDIA}/products/workstations/rtx-6000/", "generation"),
    Accelerator("RTX A6000 48GB", 48, 154.8, 38.7, f"{_NVIDIA}/products/workstations/rtx-a6000/"),
    Accelerator("RTX 5090 32GB", 32, 209.5, 104.8, _BLACKWELL),
    Accelerator("RTX 4090 24GB", 24, 165.2, 82.6, _ADA),
    Accelerator("RTX 4080 16GB", 16, 97.5, 48.7, _ADA),
    Accelerator("RTX 3090 24GB", 24, 71, 35.6, _AMPERE),
    Accelerator("MI300X 192GB", 192, 1307.4, 163.4, f"{_AMD}/mi300/mi300x.html", "oam"),
    Accelerator("MI325X 256GB", 256, 1307.4, 163.4, f"{_AMD}/mi300/mi325x.html", "oam"),
)
"""Of several that a name fits, the first is meant."""

_NO_HELP = {"nvidia", "amd", "geforce", "instinct", "radeon", "tesla", "gpu", "hbm3e", "hbm2e", "sxm4", "sxm5", "sxm6"}
"""Words that tell none of them from another."""


def known_accelerator(name: str) -> Accelerator | None:
    """The accelerator that a person or a driver calls so, such as "h100" or "NVIDIA A100-SXM4-80GB"; None for others.

    All words of the name have to be its words, and its model among them: "80GB" names none.
    """
    typed = _words(name) - _NO_HELP
    for accelerator in ACCELERATORS:
        own_words = _words(accelerator.name)
        models = {word for word in own_words if re.search(r"\d", word) and not word.endswith("gb")}
        if models <= typed <= own_words | _words(accelerator.also):
            return accelerator
    return None


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of a name.

    Raises:
        ConfigError: it is none of those that are known.
    """
    if (known_device := known_accelerator(name)) is None:
        names = ", ".join(accelerator.name for accelerator in ACCELERATORS)
        raise ConfigError(f"no device is known by the name {name[:80]!r}. Known, for a plan, are: {names}")
    return known_device


def _words(text: str) -> set[str]:
    """Its words in lower case, an amount of memory as one: "A100-80G" has a100 and 80gb."""
    text = re.sub(r"(?<!\d)(\d{1,5})\s{0,3}gi?b?\b", r"\1gb", text.lower())
    return set(re.findall(r"[a-z0-9]+", text))
