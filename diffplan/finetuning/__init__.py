"""Online fine-tuning: a pretrained planner acts, and learns from what came of it.

``loop.py`` is the entrance, ``rounds.py`` a round of it, ``methods.py`` what can learn in it, ``replay.py`` what is
learned from, ``watch.py`` what keeps it from getting worse.
"""

from diffplan.finetuning.loop import FinetuningReport, finetune
from diffplan.finetuning.methods import METHODS, Learning
from diffplan.finetuning.rounds import Acting

__all__ = ["METHODS", "Acting", "FinetuningReport", "Learning", "finetune"]
