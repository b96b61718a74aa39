-- Greetings are numbered by the worker, so that one which was overtaken by a later one is known.

alter table workers
    -- Number of the latest greeting among those of the worker's spool; 0 when it counts none.
    add column greeting bigint not null default 0 check (greeting >= 0);
