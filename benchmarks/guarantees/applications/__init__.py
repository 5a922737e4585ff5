"""The same small application three times: on Celery alone, on Dramatiq alone, and on taskbridge.

These modules run in processes of their own: workers, and the clerks that send. Only here does the contract know the
engines.
"""
