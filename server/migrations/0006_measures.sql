-- What attempts and machines used, a row a minute; thinned out with age. A crash of the machine may
-- lose the last of them.

create table attempt_measures (
    fence bigint not null references attempts on delete cascade,
    minute timestamptz not null,
    cpus double precision,
    resident_bytes bigint not null,
    anonymous_bytes bigint,
    read_rate double precision,
    write_rate double precision,
    processes integer not null,
    threads integer not null,
    zombies integer not null,
    uninterruptible integer not null,
    gpu_busy double precision,
    gpu_memory_bytes bigint,
    primary key (fence, minute)
);
create index attempt_measures_age on attempt_measures (minute);

create table machine_measures (
    worker_id uuid not null references workers on delete cascade,
    minute timestamptz not null,
    busy double precision,
    load double precision,
    memory_available_bytes bigint,
    memory_total_bytes bigint,
    swap_used_bytes bigint,
    disk_free_bytes bigint,
    disk_total_bytes bigint,
    gpu_busy double precision,
    gpu_memory_bytes bigint,
    gpu_temperature integer,
    primary key (worker_id, minute)
);
create index machine_measures_age on machine_measures (minute);
