"""The rules as scenarios, the reference model and the harness that runs them: plain Python, no pytest needed.

    from taskbridge.contract.matrix import verify

    print(verify(["celery+redis://localhost:6379/0"]).render())
"""
