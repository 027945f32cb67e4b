"""Recorded episodes: the store on disk, windows for training, normalisers, collection.

Only what touches tensors loads torch: the store and the collection do not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
