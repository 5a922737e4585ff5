-- The tables of django-celery-beat 2.9.0, as its migrations make them on SQLite, without their indexes.
CREATE TABLE django_celery_beat_intervalschedule (
    id integer PRIMARY KEY AUTOINCREMENT, every integer NOT NULL, period varchar(24) NOT NULL);
CREATE TABLE django_celery_beat_crontabschedule (
    id integer PRIMARY KEY AUTOINCREMENT, minute varchar(240) NOT NULL, hour varchar(96) NOT NULL,
    day_of_week varchar(64) NOT NULL, day_of_month varchar(124) NOT NULL, month_of_year varchar(64) NOT NULL,
    timezone varchar(63) NOT NULL);
CREATE TABLE django_celery_beat_solarschedule (
    id integer PRIMARY KEY AUTOINCREMENT, event varchar(24) NOT NULL, latitude decimal NOT NULL,
    longitude decimal NOT NULL);
CREATE TABLE django_celery_beat_clockedschedule (
    id integer PRIMARY KEY AUTOINCREMENT, clocked_time datetime NOT NULL);
CREATE TABLE django_celery_beat_periodictask (
    id integer PRIMARY KEY AUTOINCREMENT, name varchar(200) NOT NULL UNIQUE, task varchar(200) NOT NULL,
    args text NOT NULL, kwargs text NOT NULL, queue varchar(200), exchange varchar(200), routing_key varchar(200),
    expires datetime, enabled bool NOT NULL, last_run_at datetime, total_run_count integer unsigned NOT NULL,
    date_changed datetime NOT NULL, description text NOT NULL,
    crontab_id integer REFERENCES django_celery_beat_crontabschedule (id),
    interval_id integer REFERENCES django_celery_beat_intervalschedule (id),
    solar_id integer REFERENCES django_celery_beat_solarschedule (id), one_off bool NOT NULL, start_time datetime,
    priority integer unsigned, headers text NOT NULL,
    clocked_id integer REFERENCES django_celery_beat_clockedschedule (id), expire_seconds integer unsigned);
