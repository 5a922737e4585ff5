from celery import shared_task


@shared_task(autoretry_for=(ConnectionError,), max_retries=4, retry_backoff=30)
def make_report(region):
    return {"region": region, "orders": 7}
