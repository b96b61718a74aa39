-- Retries by cause, the exit code that asks for another run, and what guards both against going on
-- for ever.

alter table jobs
    -- Which failures are retried; null leaves it to the default.
    add column retry_rules jsonb,
    -- The end of the latest attempt's output told that a GPU had no memory left.
    add column gpu_out_of_memory boolean not null default false,
    -- Exits that asked to be run again from a checkpoint, and those in a row that led nowhere.
    add column checkpoint_exits integer not null default 0 check (checkpoint_exits >= 0),
    add column idle_exits integer not null default 0 check (idle_exits >= 0),
    -- A person let it go on without the worker that has its checkpoint.
    add column anywhere boolean not null default false,
    -- How a lost attempt ended after all, while its successor is asked back.
    add column late_result jsonb;

-- Until now a release was remembered by the reason alone.
update jobs set anywhere = true where state = 'queued' and reason = 'released';

alter table attempts drop constraint attempts_outcome_kind_check;
alter table attempts add constraint attempts_outcome_kind_check check (outcome_kind in
    ('succeeded', 'failed', 'interrupted', 'cancelled', 'never_started', 'checkpointed'));
