-- What was unusual about a job or a machine, and for how long. The figures are in the unit of their
-- kind: percent, bytes, degrees Celsius, seconds, or things.
create table alarms (
    id bigint primary key generated always as identity,
    kind text not null check (kind in
        ('cpu', 'memory_growth', 'gpu_memory', 'gpu_temperature', 'run_time', 'memory', 'disk',
         'out_of_memory', 'clock', 'looks')),
    -- `job 42`, `worker UUID` or `coordinator`.
    subject text not null,
    job_id bigint references jobs on delete cascade,
    fence bigint references attempts on delete cascade,
    worker_id uuid references workers on delete cascade,
    -- Name of the machine, as it was then.
    machine text not null,
    began_at timestamptz not null,
    -- Null while it lasts.
    ended_at timestamptz check (ended_at >= began_at),
    limit_value double precision not null,
    -- The worst figure.
    peak double precision not null,
    -- Why nobody was told; one word, empty when somebody was.
    untold text not null default '' check (untold in
        ('', 'not_wanted', 'told_before', 'told_with_job', 'short', 'slept', 'away'))
);
-- At most one lasts, of a subject and kind.
create unique index alarms_open on alarms (subject, kind) where ended_at is null;
create index alarms_job on alarms (job_id, id) where job_id is not null;
create index alarms_fence on alarms (fence) where fence is not null;
create index alarms_worker on alarms (worker_id, id) where worker_id is not null;
create index alarms_age on alarms (began_at);
