"""Online fine-tuning: a pretrained planner acts, and learns from what came of it.

``loop.py`` is the entrance, ``rounds.py`` a round of it, ``acting.py`` how it acts, ``method.py`` what learns in it:
``methods.py``, ``steering.py`` and ``gradient.py`` one learner each way, ``colearning.py`` several at once;
``replay.py`` what is learned from, ``safeguards.py`` what keeps it from getting worse, ``drift.py`` what notices that
partners have changed.
"""

from diffplan.finetuning.acting import Acting
from diffplan.finetuning.loop import METHODS, FinetuningReport, finetune
from diffplan.finetuning.methods import CriticMethod, Learning

__all__ = ["METHODS", "Acting", "CriticMethod", "FinetuningReport", "Learning", "finetune"]
