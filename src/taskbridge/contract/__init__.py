"""The rules as scenarios, the reference model and the harness that runs them: plain Python, no pytest needed."""
