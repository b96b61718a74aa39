-- Who leads: a lease that the leader renews, and a term that every writing transaction names.

alter table coordinator
    -- Grows with every renewal of the lease; 0 at the beginning of a term.
    add column renewals bigint not null default 0,
    -- The run of a coordinator that leads or led, what it calls itself, and where clients reach it.
    add column leader uuid,
    add column leader_name text not null default '',
    add column leader_url text not null default '',
    -- The data folder and boot in which that run lives; equal to one's own while holding the folder's
    -- lock, the run is over.
    add column leader_place text not null default '',
    -- How long the record must stay unchanged before another coordinator may take over.
    add column lease_ms bigint not null default 10000 check (lease_ms > 0),
    -- The leader has given its lease back.
    add column released boolean not null default true;

-- Fails unless the term is the present one, and keeps it the present one until the end of the
-- transaction: whoever begins another term locks the row for update, and waits. Renewals do not wait.
create function leads(wanted bigint) returns void language plpgsql as $$
begin
    perform from coordinator where one and term = wanted for key share;
    if not found then
        raise exception 'term % of the coordinator is over', wanted using errcode = 'QC001';
    end if;
end
$$;
