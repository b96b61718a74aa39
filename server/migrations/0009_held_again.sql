-- A job that was held is told each time: the episodes that are open would keep the next one untold.
update notices set over_at = created_at where class = 'job_held' and over_at is null;
