-- What people are told. A notice is written in the transaction of its event; a message is what
-- becomes of one notice or of several; a delivery is a message on its way through one channel.

-- What the submitter wants to be told; copied from the spec.
alter table jobs add column notify text not null default 'default'
    check (notify in ('default', 'always', 'failure', 'never'));

create table messages (
    id bigint primary key generated always as identity,
    created_at timestamptz not null,
    class text not null,
    severity text not null check (severity in ('info', 'warning', 'error', 'critical')),
    title text not null,
    body text not null,
    url text not null default '',
    -- How many notices it tells.
    notices integer not null check (notices > 0)
);
create index messages_recent on messages (class, created_at);

create table notices (
    id bigint primary key generated always as identity,
    created_at timestamptz not null,
    class text not null,
    severity text not null check (severity in ('info', 'warning', 'error', 'critical')),
    subject text not null,
    -- Tells apart what may go wrong with the same subject.
    signature text not null default '',
    job_id bigint,
    attempt integer,
    worker text not null default '',
    details jsonb not null,
    -- new: not looked at yet; waiting: to be told; told: in a message; held_back: never told.
    state text not null default 'new' check (state in ('new', 'waiting', 'told', 'held_back')),
    -- Why it is held back; one word.
    reason text not null default '',
    -- How often the same thing happened again in the same episode, and when last.
    repeats integer not null default 0,
    repeated_at timestamptz,
    -- When its episode ended: from then on the same thing is told again.
    over_at timestamptz,
    message_id bigint references messages on delete set null,
    -- File of the local outbox that it came from.
    filed_as text unique,
    check (state <> 'held_back' or reason <> '')
);
-- While an episode goes on, the same thing is told once. What is held back stands in nobody's way.
create unique index notices_episode on notices (subject, class, signature)
    where over_at is null and state <> 'held_back';
create index notices_open on notices (class, created_at) where state in ('new', 'waiting');
create index notices_going_on on notices (class) where over_at is null and job_id is null;
create index notices_job on notices (job_id) where job_id is not null;
create index notices_age on notices (created_at);

create table deliveries (
    message_id bigint not null references messages on delete cascade,
    channel text not null,
    state text not null default 'pending'
        check (state in ('pending', 'sending', 'sent', 'rejected', 'unknown')),
    tries integer not null default 0,
    -- Not before this time.
    next_at timestamptz not null,
    -- What the channel said about how many it still takes, before this one was sent.
    left_before bigint,
    -- What the channel said, or what went wrong.
    detail text not null default '',
    sent_at timestamptz,
    -- Names an urgent message that is repeated until a person acknowledges it.
    receipt text,
    acknowledged_at timestamptz,
    acknowledged_by text not null default '',
    -- True once the repetition has ended, whichever way.
    receipt_over boolean not null default false,
    primary key (message_id, channel)
);
create index deliveries_due on deliveries (channel, next_at) where state in ('pending', 'sending');
create index deliveries_receipts on deliveries (channel) where receipt is not null and not receipt_over;

-- What went wrong in each failed attempt, for grouping.
create table attempt_errors (
    job_id bigint not null references jobs on delete cascade,
    attempt integer not null,
    time timestamptz not null,
    signature text not null,
    exception text not null default '',
    line text not null default '',
    primary key (job_id, attempt)
);
create index attempt_errors_groups on attempt_errors (signature, time);
