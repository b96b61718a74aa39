-- Checkpoints that jobs have published, and copies of the small ones.

create table checkpoints (
    -- The attempt that published it, and its number within that attempt.
    fence bigint not null references attempts on delete cascade,
    number integer not null check (number > 0),
    job_id bigint not null references jobs on delete cascade,
    attempt integer not null check (attempt > 0),
    step bigint,
    note text not null default '',
    -- Whose disk it lies on, and where.
    worker_id uuid not null references workers,
    spool_id uuid not null,
    path text not null,
    files integer not null check (files >= 0),
    bytes bigint not null check (bytes >= 0),
    -- Empty while the worker computes it.
    hash text not null default '',
    -- The worker still has its contents.
    on_disk boolean not null default true,
    -- It was found damaged or missing when it was to be resumed from: nobody tries it again.
    damaged boolean not null default false,
    -- Length of the copy that is being made or is complete, and how much of it is stored. The end
    -- advances under this row's lock.
    upload_total bigint check (upload_total > 0),
    upload_end bigint not null default 0 check (upload_end >= 0),
    uploaded boolean not null default false,
    created_at timestamptz not null,
    primary key (fence, number),
    check (not uploaded or upload_end = upload_total)
);
create index checkpoints_job on checkpoints (job_id, fence, number);
create index checkpoints_usable on checkpoints (job_id)
    where not damaged and (on_disk or uploaded);
create index checkpoints_uploads on checkpoints (job_id) where upload_end > 0;

create table checkpoint_chunks (
    fence bigint not null,
    number integer not null,
    "offset" bigint not null check ("offset" >= 0),
    -- Bytes before compression.
    length integer not null check (length between 1 and 262144),
    crc32c bigint not null,
    data bytea not null,
    primary key (fence, number, "offset"),
    foreign key (fence, number) references checkpoints on delete cascade
);
alter table checkpoint_chunks alter column data set storage external;

alter table jobs
    -- A checkpoint of another job that the first attempt resumes from (`qctl retry`).
    add column resume_fence bigint,
    add column resume_number integer,
    add constraint jobs_resume_check check ((resume_fence is null) = (resume_number is null));

-- What a job can resume from: its own checkpoints first, then the one that it was submitted with.
create view usable_checkpoints as
    select k.job_id as for_job, 0 as rank, k.fence, k.number, k.job_id, k.attempt, k.worker_id,
           k.path, k.hash, k.on_disk, k.uploaded
    from checkpoints k
    where not k.damaged and (k.on_disk or k.uploaded)
    union all
    select j.id, 1, k.fence, k.number, k.job_id, k.attempt, k.worker_id,
           k.path, k.hash, k.on_disk, k.uploaded
    from jobs j
    join checkpoints k on k.fence = j.resume_fence and k.number = j.resume_number
    where not k.damaged and (k.on_disk or k.uploaded);

-- From here on an attempt's checkpoint is one that it published. What an earlier version noted was a
-- folder with anything in it, which may have been half-written.
update attempts set checkpoint = '' where checkpoint <> '';
