-- A job that was submitted to resume from a checkpoint of another one falls back to those before it.

create or replace view usable_checkpoints as
    select k.job_id as for_job, 0 as rank, k.fence, k.number, k.job_id, k.attempt, k.worker_id,
           k.path, k.hash, k.on_disk, k.uploaded
    from checkpoints k
    where not k.damaged and (k.on_disk or k.uploaded)
    union all
    select j.id, 1, k.fence, k.number, k.job_id, k.attempt, k.worker_id,
           k.path, k.hash, k.on_disk, k.uploaded
    from jobs j
    join checkpoints named on named.fence = j.resume_fence and named.number = j.resume_number
    join checkpoints k on k.job_id = named.job_id
                      and (k.fence, k.number) <= (named.fence, named.number)
    where not k.damaged and (k.on_disk or k.uploaded);
