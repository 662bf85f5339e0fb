"""Stage two: a store and questions in, a trained reader and its answers out.

Its names are listed in `__init__.pyi` and load when they are first used. It knows `theworld.pipeline` and never
`theworld.precompute`: the two stages meet in the store.
"""

from .config import AnswerConfig as AnswerConfig
from .config import TrainConfig as TrainConfig
from .data.loader import LatentDataset as LatentDataset
from .data.loader import Prefetcher as Prefetcher
from .data.sampler import BatchSampler as BatchSampler
from .data.sampler import BlockSampler as BlockSampler
from .evaluation.answer import ask as ask
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.results.rescore import rescore as rescore
from .evaluation.results.saved import Evaluation as Evaluation
from .language.lm import embedding_rms as embedding_rms
from .language.lm import load_language_model as load_language_model
from .language.weights import find_weights as find_weights
from .questions.record import Question as Question
from .questions.record import read_questions as read_questions
from .questions.record import resolve_keys as resolve_keys
from .reader.model import TheWorld as TheWorld
from .reader.tokens import TokenLayout as TokenLayout
from .reader.tokens import WorldReader as WorldReader
from .runs.folder import load_run as load_run
from .runs.summary import RunSummary as RunSummary
from .study.plan import Study as Study
from .study.run import run_study as run_study
from .training.train import train as train
