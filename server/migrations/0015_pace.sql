-- Earlier runs of a job that used GPUs: how long their items took tells whether one of now is far slower.

create index jobs_same_name on jobs (name, id) where state = 'succeeded' and gpus > 0;
