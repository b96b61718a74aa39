-- Statistics tell what came late because of the quiet hours, or together with others.

alter table notices add column waited text not null default ''
    check (waited in ('', 'quiet_hours', 'others'));
comment on column notices.waited is 'What it waited for before it was told; empty for nothing.';
