# What people read. Each class of notice has a title, `.what` happened where and since when, what
# qctl `.did` about it, and what a person `.can` do; `.many` and `.item` are for several in one.
# What a program said in its own words is quoted, and stands nowhere else: it has one language.

cause = { $cause ->
    [exit] it ended with exit code { $code }
    [signal] signal { $signal } ended it
    [time_limit] it reached its time limit
    [out_of_memory] the machine ran out of memory for it
    [cannot_start] it could not be started
    [worker_lost] its machine went away or was restarted
    [shim_lost] the process that looks after it was killed
    [record_gone] its worker lost the record of it, and it was not heard of for too long
    [lease_expired] its machine was cut off for too long
    [gpu_fault] { gpu-fault }
    [gpu_fallback] { $fault ->
        [unused] it was given a graphics card and did not use it for { $unused } of work
        [slow] it took { $number } times as long for an item as it did before, as if without its graphics card
       *[other] it computed without the graphics card it was given
    }
    [silence] it said nothing for too long
    [contradicted] it reported success, but its own output says otherwise
    [cancelled] it was cancelled
    [checkpointed] it saved its state, to be run again
    [drill] it was interrupted on purpose, to see whether it goes on
    [void] it was never started
   *[other] it ended ({ $cause })
}
gpu-fault = { $fault ->
    [lost] its graphics card { $gpu } has failed: the driver has lost it
    [memory] the memory of its graphics card { $gpu } is faulty
    [xid] its graphics card { $gpu } has failed: the driver reports error Xid { $number }
    [output] its graphics card failed it, as its output says
    [silent] the driver of its graphics card does not answer
    [unfit] its graphics card { $gpu } is not fit for work
   *[other] its graphics card failed
}
last-line = Last line: { $line }
# Of what is told long after it happened, or of what happened several times before it could be told.
at = This was at { $at }.
times = Since { $first } this happened { $times } times.
quote = In its own words: “{ $quote }”
# Parts of the coordinator's work.
part = { $key ->
    [dispatcher] starting jobs
    [dependents] starting jobs that wait for others
    [overlooked-dependents] starting jobs that wait for others
    [waits] starting jobs at their time
    [leases] watching whether workers answer
    [queue-watch] watching whether jobs get their turn
    [heartbeats-and-progress] keeping the progress of jobs
    [measures] keeping measurements
    [old-measures] tidying up old measurements
    [draining-workers] emptying workers
    [alarms] keeping alarms up to date
    [checkpoints] giving up waiting for saved states that do not come
    [request-ids] forgetting old requests
    [retention] deleting what is old
   *[other] { $name }
}
and-more = and { $count } more

attempt_failed = Job { $job } “{ $name }” failed, and { $stops ->
        [no] is held
       *[yes] is tried again
    }
    .what = On { $worker } after { $ran }: { $reason }.
    .did = { $stops ->
        [no] It starts again only when you let it go on
       *[yes] { $told ->
            [late] It was to start again at { $next }
           *[soon] It starts again at { $next }
        }
    }; { $left ->
        [0] there is no further try after that
        [one] one more try is left after that
       *[other] { $left } more tries are left after that
    }.
    .can = { $stops ->
        [no] To look: qctl logs { $job }. To let it go on: qctl release { $job }
       *[yes] Nothing needs to be done. To look: qctl logs { $job }
    }
    .many = { $count } jobs failed, and are tried again
    .item = { $job } { $name }: { $reason }

job_failed = Job { $job } “{ $name }” failed
    .what = On { $worker } after { $ran }: { $reason }.
    .did = It is not tried again.
    .can = To look: qctl logs { $job }. To run it again: qctl retry { $job }
    .many = { $count } jobs failed
    .item = { $job } { $name }: { $reason }

job_succeeded = Job { $job } “{ $name }” is done
    .what = It succeeded on { $worker } after { $ran }.
    .many = { $count } jobs are done
    .item = { $job } { $name }: { $ran }

job_recovered = Job { $job } “{ $name }” is done after all
    .what = It had failed before; now it succeeded on { $worker } after { $ran }.
    .many = { $count } jobs are done after all
    .item = { $job } { $name }: { $ran }

job_cancelled = Job { $job } “{ $name }” was cancelled
    .what = On { $worker } after { $ran }.
    .many = { $count } jobs were cancelled
    .item = { $job } { $name }

job_skipped = Job { $job } “{ $name }” will not run
    .what = { $state ->
        [succeeded] It was to run if job { $other } failed, and that succeeded.
        [failed] It was to run after job { $other }, and that failed.
        [cancelled] It was to run after job { $other }, and that was cancelled.
       *[deleted] It was to run after job { $other }, and that is gone.
    }
    .did = It was cancelled without having been started.
    .can = { $state ->
        [failed] Once the other job has ended well, run it again: qctl retry { $job }
        [cancelled] Once the other job has ended well, run it again: qctl retry { $job }
       *[other] To run it all the same: qctl retry { $job }
    }
    .many = { $count } jobs will not run
    .item = { $job } { $name }

job_held = Job { $job } “{ $name }” is stopped and waits for you
    .what = { $held ->
        [crash_loop] Its machine was lost twice in a row soon after the job started, so the job may be what brings it down.
        [checkpoint_elsewhere] The machine that has its saved state, { $worker }, stayed away.
       *[other] It cannot go on by itself ({ $held }).
    }
    .did = It keeps its place and is not started.
    .can = To let it go on: qctl release { $job }. To give it up: qctl cancel { $job }
    .many = { $count } jobs are stopped and wait for you
    .item = { $job } { $name }

job_interrupted = Job { $job } “{ $name }” was interrupted, and goes on
    .what = On { $worker } after { $ran }: { $reason }.
    .did = { $told ->
        [late] It was to start again at once
       *[soon] It is started again at once
    }, from its last saved state if it has one; { $left ->
        [0] it is the last time
        [one] one more time is left after that
       *[other] { $left } more times are left after that
    }.
    .can = Nothing needs to be done. To look: qctl show { $job }
    .many = { $count } jobs were interrupted, and go on
    .item = { $job } { $name }: { $reason }

job_record_gone = Job { $job } “{ $name }” cannot be seen any more
    .what = Since { $since }, worker { $worker } has had no record of this job among its files, as if its folder had been emptied or replaced. The job may well be running there still.
    .did = It is left alone. If nothing is heard of it until { $next }, it is given up{ $left ->
        [0] {" "}for good
       *[other] {" "}and started again, from its last saved state if it has one
    }.
    .can = If the worker’s folder was moved, put it back and restart the worker. Otherwise see on { $worker } whether the program still runs, and end it there if it must not run twice.
    .many = { $count } jobs cannot be seen any more
    .item = { $job } { $name } on { $worker }

job_silent = Job { $job } “{ $name }” has said nothing for { $ran }
    .what = On { $worker }, since { $since }. { $doing ->
        [gpu] Its graphics card is working.
        [computes] Its processes are computing.
        [transfers] Its processes are reading or writing.
        [device] Its processes wait for a disk or another device that does not answer.
        [nothing] Its processes do nothing: it may hang.
       *[unknown] What it is doing could not be seen.
    }
    .did = It is left alone.{ $stops ->
        [yes] {" "}If it stays silent, it is stopped at { $next }.
       *[no] {""}
    }
    .can = To see what it is doing: qctl show { $job }. To give it up: qctl cancel { $job }
    .many = { $count } jobs say nothing
    .item = { $job } { $name }: since { $since }

job_still_silent = Job { $job } “{ $name }” still says nothing, after { $ran }
    .what = On { $worker }, since { $since }. { $doing ->
        [gpu] Its graphics card is working.
        [computes] Its processes are computing.
        [transfers] Its processes are reading or writing.
        [device] Its processes wait for a disk or another device that does not answer.
        [nothing] Its processes do nothing: it may hang.
       *[unknown] What it is doing could not be seen.
    }
    .did = It is left alone.{ $stops ->
        [yes] {" "}If it stays silent, it is stopped at { $next }.
       *[no] {""}
    }
    .can = To see what it is doing: qctl show { $job }. To give it up: qctl cancel { $job }
    .many = { $count } jobs still say nothing
    .item = { $job } { $name }: since { $since }

job_silence_ended = Job { $job } “{ $name }” was stopped because it said nothing, and goes on
    .what = On { $worker } after { $ran }. { $doing ->
        [gpu] Its graphics card was working.
        [computes] Its processes were computing.
        [transfers] Its processes were reading or writing.
        [device] Its processes waited for a disk or another device that did not answer.
        [nothing] Its processes did nothing.
       *[unknown] What it was doing could not be seen.
    }
    .did = { $from ->
        [checkpoint] It is started again at once, from checkpoint { $checkpoint }
       *[start] It is started again at once, from the beginning
    }; { $left ->
        [0] it is the last time
        [one] one more time is left after that
       *[other] { $left } more times are left after that
    }.
    .can = To see where it stood: qctl show { $job }. If it is silent by nature, submit it with more time: --silence stop=1h
    .many = { $count } jobs were stopped because they said nothing, and go on
    .item = { $job } { $name }

job_refused = Job { $job } “{ $name }” was refused by { $worker }
    .what = It could not be started there.
    .did = It is offered again every few seconds.
    .can = To see why it waits: qctl why { $job }
    .many = { $count } jobs were refused
    .item = { $job } { $name }: { $worker }

worker_unreachable = Worker { $worker } cannot be reached
    .what = Nothing was heard of it since { $since }. Job { $job } “{ $name }” was running there and may well be running still.
    .did = The job is left alone. It is started elsewhere only if the worker stays away for long.
    .can = Look whether the machine is on and has a network. To look from here: qctl workers
    .many = { $count } workers cannot be reached
    .item = { $worker }, since { $since }

worker_back = Worker { $worker } is back
    .what = It was away from { $since } to { $until }, for { $ran }.
    .many = { $count } workers are back
    .item = { $worker }

queue_stands = Jobs wait and none is running
    .what = None has been running since { $since }. { $doing ->
        [away] No worker is connected.
       *[full] No worker that is connected can take one now.
    } Job { $job } “{ $name }” has waited the longest.
    .did = They start as soon as a worker can take them.
    .can = To see what is missing: qctl why { $job }, and qctl workers
    .many = Jobs wait and none is running
    .item = since { $since }

queue_moves = Jobs no longer wait in vain
    .what = Jobs waited and none was running from { $since } to { $until }, for { $ran }.
    .many = Jobs waited in vain { $count } times, and no longer do
    .item = { $since }

submission_refused = A submission was refused
    .what = { $name } tried to submit a job that qctl cannot take.
    .did = Nothing was stored.
    .can = Correct it and submit again.
    .many = { $count } submissions were refused
    .item = { $name }: { $quote }

database_away = qctl has lost its database
    .what = On { $worker }, it has not answered since { $since }.
    .did = Jobs that run go on, and nothing is lost. New jobs are refused and none is started until it is back. It is tried again all the time.
    .can = If it does not come back by itself: qctl status, then look at the disk and the log of { $worker }.
    .many = qctl lost its database { $count } times
    .item = since { $since }

database_back = qctl has its database again
    .what = On { $worker }. It was away from { $since } to { $until }, for { $ran }.
    .did = Jobs that ran were left alone; the queue goes on.
    .many = qctl had its database again { $count } times
    .item = away for { $ran }, since { $since }

database_refuses = The database refuses to write
    .what = On { $worker }, since { $since }.
    .did = Jobs that run go on. New jobs are refused, and none is started, until it writes again. It is tried again all the time.
    .can = Make room on the disk of the database, or see why it only reads.
    .many = The database refused to write { $count } times
    .item = since { $since }

database_stores = The database writes again
    .what = On { $worker }. It refused from { $since } to { $until }, for { $ran }.
    .did = Jobs that ran were left alone; the queue goes on.
    .many = The database wrote again { $count } times
    .item = for { $ran }, since { $since }

database_restarted = qctl's database was restarted
    .what = On { $worker }. It is back; it was away for { $ran }, since { $since }.
    .did = Jobs that ran were left alone, and nothing was lost.
    .can = Nothing needs to be done. If it happens again, look at the memory and the disk of { $worker }.
    .many = qctl's database was restarted { $count } times
    .item = away for { $ran }, since { $since }

disk_nearly_full = The disk of { $worker } is nearly full
    .what = { $value } are left, less than { $limit }, since { $since }.
    .did = Everything goes on for now. Without room, output and saved states of jobs are lost.
    .can = Make room. To delete old jobs with their output: qctl cleanup
    .many = { $count } disks are nearly full
    .item = { $worker }: { $value } left

disk_well = The disk of { $worker } has room again
    .what = It was nearly full from { $since } to { $until }, for { $ran }.
    .many = { $count } disks have room again
    .item = { $worker }

job_busy = Job { $job } “{ $name }” keeps all processors busy
    .what = On { $worker } since { $since }: { $value } of the machine’s processors.
    .did = It goes on. This is told once for this job.
    .can = Nothing, if it is meant to work hard. To look: qctl show { $job }
    .many = { $count } jobs keep all processors of their machines busy
    .item = { $job } { $name }: { $value }

job_grows = Job { $job } “{ $name }” takes more and more memory
    .what = On { $worker } it has grown by { $value } without a break.
    .did = It goes on. This is told once for this job.
    .can = If it should not grow, it may be losing memory, and ends when the machine has none left. To look: qctl show { $job }
    .many = { $count } jobs take more and more memory
    .item = { $job } { $name }: { $value } more

job_gpu_full = Job { $job } “{ $name }” fills its graphics memory
    .what = On { $worker } since { $since }: { $value } are taken.
    .did = It goes on. This is told once for this job.
    .can = Nothing, if it is meant to. If it ends for want of memory, give it smaller batches. To look: qctl show { $job }
    .many = { $count } jobs fill their graphics memory
    .item = { $job } { $name }: { $value }

job_long = Job { $job } “{ $name }” has been running for { $ran }
    .what = On { $worker } since { $since }.
    .did = It goes on. This is told once for this job.
    .can = Nothing, if it is meant to take long. To look: qctl show { $job }
    .many = { $count } jobs have been running for long
    .item = { $job } { $name }: { $ran }

machine_busy = The processors of { $worker } are all busy
    .what = Since { $since }: { $value }. No single job does it.
    .did = Jobs go on, perhaps slowly. This is told once a day.
    .can = If jobs are too slow, run fewer at a time, or look for other programs there. To look: qctl health
    .many = The processors of { $count } machines are all busy
    .item = { $worker }: { $value }

memory_nearly_full = The memory of { $worker } is nearly full
    .what = Since { $since }: { $value } are taken.
    .did = Jobs go on. When nothing is left, the system ends programs, and may take jobs.
    .can = End what is not needed there. To see what takes it: qctl workers
    .many = The memory of { $count } machines is nearly full
    .item = { $worker }: { $value }

memory_well = The memory of { $worker } has room again
    .what = It was nearly full from { $since } to { $until }, for { $ran }.
    .many = The memory of { $count } machines has room again
    .item = { $worker }

gpu_hot = A graphics card of { $worker } is hot
    .what = Since { $since }: { $value }.
    .did = Jobs go on. A card that is too hot slows down by itself. This is told at most every six hours.
    .can = Look at its fans, the dust, and the room. To look: qctl health
    .many = Graphics cards of { $count } machines are hot
    .item = { $worker }: { $value }

out_of_memory = { $worker } ran out of memory
    .what = At { $since } the system ended programs there to get memory back: { $value } of them. No job has told of it.
    .did = Jobs go on.
    .can = Run fewer jobs at a time there, or look for other programs. To look: qctl workers
    .many = { $count } machines ran out of memory
    .item = { $worker } at { $since }

clock_jumped = The clock of { $worker } was set back
    .what = At { $since }, by { $ran }.
    .did = Jobs go on; their limits do not follow that clock.
    .can = Look whether the machine sets its clock by the network. Times in its programs' own logs may be wrong.
    .many = The clocks of { $count } machines were set back
    .item = { $worker }: { $ran }

looks_missed = { $worker } does not see what its jobs do
    .what = It answers, but has not been able to look at its machine since { $since }.
    .did = Jobs go on, but what they use is not watched, and no alarm about it can come.
    .can = Often a disk or network folder there does not answer. Look at that machine.
    .many = { $count } workers do not see what their jobs do
    .item = { $worker }, since { $since }

looks_back = { $worker } sees its jobs again
    .what = What they used was not watched from { $since } to { $until }, for { $ran }.
    .many = { $count } workers see their jobs again
    .item = { $worker }

coordinator_crashed = qctl crashed, and runs again
    .what = The coordinator on { $worker } ended without warning at about { $since } and is back since { $next }.
    .did = Jobs that ran were left alone, and nothing was lost.
    .can = Nothing needs to be done. If it happens again, look at its log: { $text }
    .many = qctl crashed { $count } times, and runs again
    .item = at about { $since }

coordinator_away = qctl's coordinator cannot be reached
    .what = { $name ->
        [fails] On { $worker }, it ends again and again, or cannot be started, since { $since }.
       *[silent] Worker { $worker } has heard nothing of it since { $since }.
    }
    .did = Jobs that run go on, and their results are kept. No new ones are started. It is tried again all the time.
    .can = Look whether the machine of the coordinator is on. There: qctl status, or qctl up
    .many = qctl's coordinator could not be reached { $count } times
    .item = since { $since }

coordinator_back = qctl's coordinator is back
    .what = On { $worker }, it can be reached again. It was away from { $since } to { $until }, for { $ran }.
    .many = qctl's coordinator was back { $count } times
    .item = away for { $ran }

gpu_faulty = { $fault ->
        [silent] The graphics driver of { $worker } does not answer
       *[other] A graphics card of { $worker } does not work
    }
    .what = { $fault ->
        [lost] { $gpu }, since { $since }: the driver has lost it.
        [memory] { $gpu }, since { $since }: its memory has errors that cannot be corrected.
        [xid] { $gpu }, since { $since }: the driver reports error Xid { $number }.
        [fails_jobs] { $gpu }, since { $since }: two jobs in a row failed on it, though its driver calls it well.
        [silent] Since { $since }. Jobs that run there may well go on.
       *[other] { $gpu }, since { $since }.
    }
    .did = { $fault ->
        [fails_jobs] No job is started on it for half an hour. Then one job tries it; if that fails, it rests for twice as long, up to 8 hours.
       *[other] No job is started on it. It is tried again all the time.
    }
    .can = { $fault ->
        [fails_jobs] To look: qctl workers. To use it again at once: qctl worker resume { $worker }
       *[other] To look: qctl workers. If it does not come back, restart the machine.
    }
    .many = { $count } graphics cards do not work
    .item = { $worker }: { $gpu }

gpu_works = { $fault ->
        [silent] The graphics driver of { $worker } answers again
       *[other] A graphics card of { $worker } works again
    }
    .what = { $gpu }. It was out from { $since } to { $until }, for { $ran }.
    .did = Jobs are started on it again.
    .many = { $count } graphics cards work again
    .item = { $worker }: { $gpu }

panic = A fault inside qctl: { $name }
    .what = On { $worker }, in { $place }.
    .did = { $key ->
        [qctl-worker-shim] The job that it looked after was interrupted, and goes on from its last saved state.
       *[other] Only this part stopped, and it is started again where that is possible. Jobs that run are left alone.
    }
    .can = Please report it with these words.
    .many = { $count } faults inside qctl
    .item = { $name }: { $quote }

trouble = qctl cannot do a part of its work
    .what = Since { $since } it fails again and again: { $part }.
    .did = It is tried again all the time. Jobs that run are left alone.
    .can = To look: qctl status
    .many = qctl could not do { $count } parts of its work
    .item = { $part }

trouble_over = A part of qctl works again
    .what = It works again: { $part }. The trouble lasted from { $since } to { $until }, for { $ran }.
    .many = { $count } troubles are over
    .item = { $part }

channel_refused = Notices cannot be sent by { $name }
    .what = { $name } does not take them.
    .did = What could not be sent is kept in: qctl notices
    .can = Correct the settings and try: qctl notices test
    .many = { $count } ways to send notices refuse
    .item = { $name }: { $quote }

channel_works = Notices are sent by { $name } again
    .what = It refused them from { $since } to { $until }, for { $ran }.
    .many = { $count } ways to send notices work again
    .item = { $name }

channel_low = { $name } takes only { $left } more messages this month
    .what = Once they are used up, it tells nothing until the next month.
    .did = Notices go on until then.
    .can = To get fewer, raise minimum in notify.toml. To see what was sent: qctl notices --statistics
    .many = { $count } ways to send notices take only few more
    .item = { $name }: { $left }

test = qctl can reach you
    .what = This is a test, asked for by { $name }.
    .many = { $count } tests
    .item = { $name }
