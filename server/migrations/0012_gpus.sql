-- GPUs that do not work, by UUID: what is wrong with each, since when, and whether people were told.
-- They are given to no job until a probe passes. Apart from what a worker says of itself, which each
-- greeting writes anew.

alter table workers add column gpu_faults jsonb not null default '{}'
    check (jsonb_typeof(gpu_faults) = 'object');
