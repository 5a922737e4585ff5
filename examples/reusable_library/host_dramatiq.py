"""A host application that runs the library's tasks on Dramatiq, on a queue of its own choice.

From the repository's root:

    OUTBOX=/tmp/outbox taskbridge worker examples.reusable_library.host_dramatiq --queues bulk
    OUTBOX=/tmp/outbox python -m examples.reusable_library.host_dramatiq "Hello"
"""

import os
import sys
from functools import partial

from examples.reusable_library import newsletter
from examples.reusable_library.outbox import append_to_outbox
from taskbridge import configure

configure(
    f"dramatiq+{os.environ.get('REDIS_URL', 'redis://localhost:6379/0')}",
    routes=[("newsletter.*", "bulk")],
)
newsletter.deliver_with(partial(append_to_outbox, host="dramatiq"))

if __name__ == "__main__":
    newsletter.publish(sys.argv[1], ["cat@example.org", "dan@example.org"])
