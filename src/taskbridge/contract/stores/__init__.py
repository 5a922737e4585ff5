"""What every store promises, as checks: plain Python, no pytest needed.

    python -m taskbridge.contract.stores sqlite:///shop.db postgresql://localhost/shop redis://localhost:6379/0

runs them on stores of one's own, in namespaces of their own. Who writes a store runs them by
`taskbridge.contract.stores.suite.run_all`, with a server that may be stopped also those that take the store away.
"""
