-- What is told of a result that came late names the attempt that it is of.

-- It was only the outcome: the attempt, its worker and its times come beside it.
update jobs j
set late_result = jsonb_build_object('attempt', a.number, 'worker', w.name, 'outcome', j.late_result,
                                     'started_at', a.started_at,
                                     'ended_at', coalesce(a.ended_at, a.assigned_at))
from attempts a join workers w on w.id = a.worker_id
where j.late_result is not null
  and a.fence = (select max(b.fence) from attempts b
                 where b.job_id = j.id and b.late_result is not null);
comment on column jobs.late_result is
    'How an attempt that had been given up ended after all, with its number, worker and times, while the
attempt after it is asked back.';

-- A worker whose files were replaced is heard of, and knows nothing of an attempt that may well run.
alter table attempts add column record_gone boolean not null default false;
comment on column attempts.record_gone is
    'True once its worker is known to have no record of it any more, until it ends or is heard of again.';
