-- What was over before it could be told is not told as news.

alter table notices add column ended_at timestamptz;
comment on column notices.ended_at is
    'When what it tells ceased to be so; null while it is so, and for what only happened.';
update notices set ended_at = over_at
where state in ('new', 'waiting') and over_at is not null
  and class in ('worker_unreachable', 'database_away', 'database_refuses', 'disk_nearly_full',
                'memory_nearly_full', 'looks_missed', 'coordinator_away', 'gpu_faulty', 'trouble',
                'channel_refused');
-- Which notices a message tells is asked before each delivery.
create index notices_message on notices (message_id) where message_id is not null;

-- over: what it tells ended before the channel could take it, so it is not sent.
alter table deliveries drop constraint deliveries_state_check;
alter table deliveries add constraint deliveries_state_check
    check (state in ('pending', 'sending', 'sent', 'rejected', 'unknown', 'over'));

-- Why an alarm ended although what it tells of may go on; one word, empty when that is over.
alter table alarms add column ended_because text not null default ''
    check (ended_because in ('', 'switched_off', 'other_machine', 'same_disk'));
