"""Judge-free evaluation: is the evidence for a question among what a search would show?"""

from lightmem_pipelines.evaluation.evaluate import evaluate
from lightmem_pipelines.evaluation.questions import DATASETS
from lightmem_pipelines.evaluation.report import EvalReport, render_text

__all__ = ["DATASETS", "EvalReport", "evaluate", "render_text"]
