"""An engine of one's own, as small as it can be: threads of this process. Its URL is `threads+memory://`.

An installed package makes it known with an entry point:

    [project.entry-points."taskbridge.engines"]
    threads = "examples.own_engine"
"""
