-- The queue and its history. States are text with a check; the invariants of ARCHITECTURE.md are
-- constraints and indexes here wherever SQL can say them. Nothing decides by now(): every time is
-- given by the coordinator.

create sequence fences as bigint;

create table jobs (
    id bigint primary key generated always as identity,
    -- Creation day in UTC, copied into the job's log chunks to choose their partition.
    day date not null,
    state text not null check (state in
        ('waiting', 'held', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
    reason text not null default '',
    message text not null default '',
    name text not null,
    tracker text not null default '',
    -- The tracker in upper case without leading zeros in its number, so that INTG-88 finds INTG-088.
    tracker_key text not null default '',
    labels jsonb not null default '{}',
    priority integer not null default 0,
    -- Name of the only worker that may run it; empty means any.
    pinned_worker text not null default '',
    slots integer not null default 1 check (slots between 1 and 1000),
    gpus integer not null default 0 check (gpus between 0 and 1000),
    memory_bytes bigint not null default 0 check (memory_bytes >= 0),
    exclusive boolean not null default false,
    time_limit_us bigint check (time_limit_us > 0),
    -- A retry's back-off.
    not_before timestamptz,
    unmet_dependencies integer not null default 0 check (unmet_dependencies >= 0),
    -- A person's wish that a running attempt has not obeyed yet.
    cancel_requested boolean not null default false,
    -- Worker that must start it now, beside its slots (`qctl execute`).
    run_now_on uuid,
    -- Number of the latest attempt, and its fence; the current attempt is the one that is not ended.
    attempts integer not null default 0 check (attempts >= 0),
    fence bigint,
    -- What the spec allows, and what is left of it.
    retries integer not null check (retries >= 0),
    retries_left integer not null check (retries_left >= 0),
    resumes integer not null check (resumes >= 0),
    resumes_left integer not null check (resumes_left >= 0),
    -- Attempts that lost their host shortly after they started, in a row (the crash-loop hold).
    early_losses integer not null default 0,
    retry_of bigint,
    submitted_by text not null default '',
    created_at timestamptz not null,
    started_at timestamptz,
    ended_at timestamptz,
    check ((ended_at is not null) = (state in ('succeeded', 'failed', 'cancelled'))),
    check (state <> 'running' or fence is not null),
    check (state <> 'waiting' or unmet_dependencies > 0 or not_before is not null)
);

-- The dispatcher's order.
create index jobs_queued on jobs (priority desc, id) where state = 'queued';
create index jobs_waiting_until on jobs (not_before) where state = 'waiting' and not_before is not null;
create index jobs_run_now on jobs (run_now_on) where run_now_on is not null;
create index jobs_live on jobs (state, id) where ended_at is null;
create index jobs_ended on jobs (ended_at) where ended_at is not null;
create index jobs_tracker on jobs (tracker_key, id) where tracker_key <> '';
create index jobs_labels on jobs using gin (labels jsonb_path_ops) where labels <> '{}';

-- What was asked for; wide, and read only when a job starts or is shown.
create table job_specs (
    job_id bigint primary key references jobs on delete cascade,
    spec jsonb not null
);

create table dependencies (
    job_id bigint not null references jobs on delete cascade,
    -- No foreign key: a dependency outlives the deletion of the job it was met by.
    on_job_id bigint not null,
    condition text not null check (condition in ('ok', 'failed', 'any')),
    met boolean not null default false,
    primary key (job_id, on_job_id)
);
create index dependencies_on on dependencies (on_job_id) where not met;

create table workers (
    id uuid primary key,
    name text not null unique,
    hostname text not null,
    boot_id text not null,
    spool_id uuid not null,
    version text not null,
    mode text not null default 'active' check (mode in ('active', 'paused', 'draining')),
    slots integer not null check (slots between 1 and 1000),
    gpus jsonb not null default '[]',
    memory_bytes bigint not null default 0,
    cpus integer not null default 0,
    first_seen timestamptz not null
);

-- Rewritten at every heartbeat: narrow, no index on what changes, room for HOT updates.
create table workers_live (
    worker_id uuid primary key references workers on delete cascade,
    last_seen timestamptz not null,
    load double precision,
    memory_used_bytes bigint
) with (fillfactor = 50);

create table attempts (
    fence bigint primary key,
    job_id bigint not null references jobs on delete cascade,
    number integer not null check (number > 0),
    state text not null check (state in ('assigned', 'running', 'ended')),
    worker_id uuid not null references workers,
    boot_id text not null,
    spool_id uuid not null,
    term bigint not null,
    -- What it occupies. Held until no process of it is left, which may be after its end.
    slots integer not null,
    gpus integer not null,
    memory_bytes bigint not null,
    gpu_uuids text[] not null default '{}',
    beside_slots boolean not null default false,
    slot_held boolean not null default true,
    unreachable boolean not null default false,
    paused boolean not null default false,
    stop_requested text,
    assigned_at timestamptz not null,
    started_at timestamptz,
    ended_at timestamptz,
    duration_us bigint,
    pid integer,
    outcome_kind text check (outcome_kind in
        ('succeeded', 'failed', 'interrupted', 'cancelled', 'never_started')),
    outcome_cause text,
    outcome_message text,
    exit_code integer,
    signal integer,
    checkpoint text not null default '',
    resumed_from text not null default '',
    not_enforced text[] not null default '{}',
    -- Length and checksum of its whole output, from its result.
    log_end bigint,
    log_crc32c bigint,
    -- Facts that arrived after the attempt was given up.
    late_result jsonb,
    unique (job_id, number),
    check ((state = 'ended') = (outcome_kind is not null)),
    check (state = 'ended' or slot_held),
    check (state <> 'running' or started_at is not null)
);

-- At most one attempt of a job is current.
create unique index attempts_current on attempts (job_id) where state <> 'ended';
create index attempts_holding on attempts (worker_id) where slot_held;
create index attempts_recent on attempts (worker_id, ended_at) where state = 'ended';

-- What changes all the time while an attempt runs. `log_stored` advances under this row's lock.
create table attempts_live (
    fence bigint primary key references attempts on delete cascade,
    log_stored bigint not null default 0 check (log_stored >= 0),
    log_lines bigint not null default 0,
    progress jsonb
) with (fillfactor = 50);

create table log_chunks (
    day date not null,
    fence bigint not null,
    "offset" bigint not null check ("offset" >= 0),
    -- Bytes before compression; 0 for a hole.
    length integer not null check (length between 0 and 262144),
    first_line bigint not null,
    -- [stream, length, microseconds since the epoch] per run.
    runs jsonb not null,
    data bytea not null,
    crc32c bigint not null,
    hole_bytes bigint not null default 0,
    hole_lines bigint not null default 0,
    colour_state bytea not null default '',
    primary key (day, fence, "offset")
) partition by range (day);
alter table log_chunks alter column data set storage external;

-- History: append only.
create table events (
    id bigint primary key generated always as identity,
    time timestamptz not null,
    job_id bigint,
    attempt integer,
    worker text not null default '',
    kind text not null,
    message text not null,
    actor text not null
);
create index events_job on events (job_id, id);

-- Idempotency: what a request id stood for. Survives the deletion of its jobs.
create table requests (
    submitter text not null,
    request_id text not null,
    digest bytea not null,
    job_ids bigint[] not null,
    created_at timestamptz not null,
    primary key (submitter, request_id)
);
create index requests_age on requests (created_at);

create table tokens (
    hash bytea primary key,
    name text not null,
    role text not null check (role in ('read', 'submit', 'operate', 'admin', 'worker')),
    created_at timestamptz not null,
    expires_at timestamptz,
    revoked_at timestamptz
);

-- One row: what is true of the coordinator as a whole.
create table coordinator (
    one boolean primary key default true check (one),
    term bigint not null default 0,
    queue_paused boolean not null default false
);
insert into coordinator default values;
