"""The rules as scenarios, the reference model and the harness that runs them: plain Python, no pytest needed.

It is started by `taskbridge.contract.matrix.verify(["celery+redis://localhost:6379/0"])`.
"""

from taskbridge.contract.preloading import preload

preload()  # before all else: it may change what the other modules import
