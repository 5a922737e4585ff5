from taskbridge import RetryPolicy, task


@task(retry=RetryPolicy(max_attempts=5, min_delay=30, max_delay=600, retry_on=ConnectionError))
def make_report(region):
    return {"region": region, "orders": 7}
