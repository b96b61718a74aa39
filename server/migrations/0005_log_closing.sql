-- Output is compared with its worker's checksum once all of it is stored, and missing parts say why
-- they are missing.

alter table attempts_live
    -- CRC-32C over everything before log_stored as the job wrote it. Null when some of it is missing
    -- and nobody knows what it was.
    add column log_crc32c bigint default 0,
    -- What comparing the whole output came to: sent again once, or different after that as well.
    add column log_check text not null default '' check (log_check in ('', 'resent', 'differs')),
    -- Some of the output is missing, and the history tells it.
    add column log_gaps boolean not null default false;

update attempts_live set log_crc32c = null where log_stored > 0;

alter table log_chunks
    add column hole_cause text not null default ''
        check (hole_cause in ('', 'no_room', 'limit', 'damaged', 'removed'));
