"""Stage one: images and videos in, a store of latents out.

Its names are listed in `__init__.pyi` and load when they are first used. It knows `theworld.pipeline` and never
`theworld.train`: the two stages meet in the store.
"""

from .inputs.listing.inputs import list_inputs as list_inputs
from .job.config import PrecomputeConfig as PrecomputeConfig
from .job.report import Report as Report
from .job.run import run_precompute as run_precompute
from .job.watching.status import Status as Status
from .job.watching.status import read_status as read_status
from .live.world import LiveWorld as LiveWorld
from .worlds.registry import load_world as load_world
