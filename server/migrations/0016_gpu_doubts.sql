-- GPUs on which jobs failed last although their driver calls them well: the jobs, and, when they were
-- enough, what is told of the GPU and until when it rests. Whatever succeeds on a GPU ends its row.

create table gpu_doubts (
    worker_id uuid not null references workers on delete cascade,
    gpu text not null,
    jobs bigint[] not null,
    faulty jsonb check (jsonb_typeof(faulty) = 'object'),
    tries integer not null default 0 check (tries >= 0),
    rests_until timestamptz,
    primary key (worker_id, gpu),
    check ((faulty is null) = (rests_until is null))
);
