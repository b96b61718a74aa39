-- The newest silence of an attempt that people were or would be told of: how far it came, since when,
-- and what the attempt did then.
alter table attempts add column silence jsonb;
