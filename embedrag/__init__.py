"""EmbedRAG: fine-tune text-embedding models for retrieval, and prove that they got better.

Everything below is loaded when it is first used, so `import embedrag` costs next to nothing.
"""

TYPE_CHECKING = False  # type checkers take it for true; importing typing would cost more than this whole module

__version__ = "0.1.0"

# Name -> module that defines it. docs/api.md describes each of them; a test holds the two lists against each other.
_FACE = {
    "check": "embedrag.api",
    "train": "embedrag.api",
    "merge": "embedrag.merging.merge",
    "evaluate": "embedrag.evaluation.result",
    "mine": "embedrag.retrieval.mining",
    "load_model": "embedrag.models.load",
    "load_rows": "embedrag.data.rows",
    "load_retrieval_dataset": "embedrag.data.retrieval_dataset",
    "fewer_passages": "embedrag.data.retrieval_dataset",
    "trained_from": "embedrag.models.load",
    "TrainOptions": "embedrag.training.config.options",
    "RunResult": "embedrag.training.run",
    "MergeReport": "embedrag.merging.merge",
    "Evaluation": "embedrag.evaluation.result",
    "MiningResult": "embedrag.retrieval.mining",
    "DataReport": "embedrag.data.checks.report",
    "Encoder": "embedrag.models.encoder",
    "TrainingRow": "embedrag.data.rows",
    "RetrievalDataset": "embedrag.data.retrieval_dataset",
    "build_model": "embedrag.models.build",
    "save_model": "embedrag.models.save",
    "TripletDataset": "embedrag.data.triplet_dataset",
    "pool": "embedrag.models.pooling",
    "info_nce": "embedrag.losses.contrastive",
    "EmbedRagError": "embedrag.errors",
    "UserError": "embedrag.errors",
    "RunError": "embedrag.errors",
    "console": "embedrag.runtime.console",
}
__all__ = ["__version__", *_FACE]

if TYPE_CHECKING:
    from embedrag.api import check as check
    from embedrag.api import train as train
    from embedrag.data.checks.report import DataReport as DataReport
    from embedrag.data.retrieval_dataset import RetrievalDataset as RetrievalDataset
    from embedrag.data.retrieval_dataset import fewer_passages as fewer_passages
    from embedrag.data.retrieval_dataset import load_retrieval_dataset as load_retrieval_dataset
    from embedrag.data.rows import TrainingRow as TrainingRow
    from embedrag.data.rows import load_rows as load_rows
    from embedrag.data.triplet_dataset import TripletDataset as TripletDataset
    from embedrag.errors import EmbedRagError as EmbedRagError
    from embedrag.errors import RunError as RunError
    from embedrag.errors import UserError as UserError
    from embedrag.evaluation.result import Evaluation as Evaluation
    from embedrag.evaluation.result import evaluate as evaluate
    from embedrag.losses.contrastive import info_nce as info_nce
    from embedrag.merging.merge import MergeReport as MergeReport
    from embedrag.merging.merge import merge as merge
    from embedrag.models.build import build_model as build_model
    from embedrag.models.encoder import Encoder as Encoder
    from embedrag.models.load import load_model as load_model
    from embedrag.models.load import trained_from as trained_from
    from embedrag.models.pooling import pool as pool
    from embedrag.models.save import save_model as save_model
    from embedrag.retrieval.mining import MiningResult as MiningResult
    from embedrag.retrieval.mining import mine as mine
    from embedrag.runtime.console import console as console
    from embedrag.training.config.options import TrainOptions as TrainOptions
    from embedrag.training.run import RunResult as RunResult


def __getattr__(name: str) -> object:
    """Load a name of the face when it is first used (PEP 562)."""
    import importlib

    if name not in _FACE:
        raise AttributeError(f"module 'embedrag' has no attribute {name!r}")
    value = getattr(importlib.import_module(_FACE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})
