"""A host application that runs the library's tasks on Celery.

From the repository's root:

    OUTBOX=/tmp/outbox taskbridge worker examples.reusable_library.host_celery
    OUTBOX=/tmp/outbox python -m examples.reusable_library.host_celery "Hello"
"""

import os
import sys
from functools import partial

from examples.reusable_library import newsletter
from examples.reusable_library.outbox import append_to_outbox
from taskbridge import configure

configure(f"celery+{os.environ.get('REDIS_URL', 'redis://localhost:6379/0')}")
newsletter.deliver_with(partial(append_to_outbox, host="celery"))

if __name__ == "__main__":
    newsletter.publish(sys.argv[1], ["ann@example.org", "bob@example.org"])
