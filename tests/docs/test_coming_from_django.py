"""The page about Django's packages says something of each name that they have, in the releases that it names."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.docs.pages import DOCS

PAGE: Final = (DOCS / "coming-from-django.md").read_text(encoding="utf-8")

NAMES: Final = {
    "django-celery-beat 2.9.0": """
        CELERY_BEAT_SCHEDULER CELERY_BEAT_SCHEDULE CELERY_BEAT_MAX_LOOP_INTERVAL DJANGO_CELERY_BEAT_TZ_AWARE
        PeriodicTask PeriodicTasks IntervalSchedule CrontabSchedule SolarSchedule ClockedSchedule
        every period minute hour day_of_month month_of_year day_of_week timezone event latitude longitude clocked_time
        name task interval crontab solar clocked args kwargs queue exchange routing_key headers priority expires
        expire_seconds one_off start_time enabled last_run_at total_run_count date_changed description
        pre_save post_save pre_delete post_delete enable_tasks disable_tasks toggle_tasks run_tasks
    """,
    "django-celery-results 2.6.0": """
        CELERY_RESULT_BACKEND CELERY_CACHE_BACKEND CELERY_RESULT_EXPIRES CELERY_RESULT_EXTENDED
        DJANGO_CELERY_RESULTS DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH DJANGO_CELERY_RESULTS_ID_FIRST_URLS
        TaskResult GroupResult ChordCounter task_id periodic_task_name task_name task_args task_kwargs status worker
        content_type content_encoding result date_created date_started date_done traceback meta
        get_task store_result get_group store_group_result get_all_expired delete_expired
        is_task_successful task_status is_group_successful group_status
    """,
    "django-dramatiq 0.15.0": """
        DRAMATIQ_BROKER BROKER OPTIONS MIDDLEWARE DRAMATIQ_RESULT_BACKEND BACKEND BACKEND_OPTIONS MIDDLEWARE_OPTIONS
        DRAMATIQ_RATE_LIMITER_BACKEND DRAMATIQ_TASKS_DATABASE DRAMATIQ_ENCODER DRAMATIQ_AUTODISCOVER_MODULES
        DRAMATIQ_IGNORED_MODULES DRAMATIQ_NPROCS DRAMATIQ_NTHREADS DbConnectionsMiddleware AdminMiddleware
        DjangoDramatiqConfig DramatiqTestCase Task id status actor_name queue_name created_at updated_at message_data
        delete_old_tasks rundramatiq processes threads queues reload watch use polling spawn gevent pid-file log-file
        skip-logging path fork-function worker-shutdown-timeout
    """,
}


@pytest.mark.parametrize("package", NAMES)
def test_each_name_of_a_package_has_an_equivalent_or_a_reason(package: str) -> None:
    start = PAGE.index(f"\n## {package.partition(' ')[0]}")
    end = PAGE.find("\n## ", start + 1)
    cells = re.findall(r"^\| *([^|]*)\|", PAGE[start : end if end >= 0 else None], re.MULTILINE)
    code = " ".join(word for cell in cells for word in re.findall(r"`([^`]*)`", cell))

    assert package in PAGE
    assert [name for name in NAMES[package].split() if not re.search(rf"\b{name}\b", code)] == []


def test_every_empty_equivalent_has_a_reason() -> None:
    rows = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)]
    empty = [row for row in rows if len(row) == 3 and not row[1].strip()]

    assert len(empty) >= 20
    assert [row[0] for row in empty if not row[2].strip().startswith("no, because")] == []
