//! Scripted looks: what must be one episode is one, and what is healthy is none.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::setting::{Setting, Settings};
use super::watch::{AttemptFacts, AttemptLook, Disk, MachineFacts, MachineLook, OwnMachine, Watch};
use super::{Because, Change, Episode, Kind, Pace, Subject, Untold, telling};
use crate::id::{AttemptNumber, Fence, JobId, WorkerId};
use crate::measures::{AttemptMeasures, MachineMeasures};
use crate::notice::{Class, Wish};

const GB: f64 = 1e9;
const LOOK: i64 = 5;
const HOUR: i64 = 3_600;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn worker() -> WorkerId {
    WorkerId(Uuid::from_u128(7))
}

/// A machine with 8 processors, 64 GB of memory and 1 TB of disk, all of it idle.
fn idle() -> MachineLook {
    MachineLook {
        used: MachineMeasures {
            busy: Some(0.02),
            memory_available_bytes: Some(60_000_000_000),
            memory_total_bytes: Some(64_000_000_000),
            disk_free_bytes: Some(500_000_000_000),
            disk_total_bytes: Some(1_000_000_000_000),
            gpu_temperature: Some(45),
            ..MachineMeasures::default()
        },
        ..MachineLook::default()
    }
}

fn used(cpus: f64, anonymous: f64) -> AttemptLook {
    AttemptLook {
        fence: Fence(1),
        used: AttemptMeasures {
            cpus: Some(cpus),
            anonymous_bytes: Some(anonymous as i64),
            ..AttemptMeasures::default()
        },
        gpu_memory: None,
    }
}

fn own(host: &str, boot: &str) -> OwnMachine {
    OwnMachine {
        host: host.to_owned(),
        boot: boot.to_owned(),
    }
}

struct Bench {
    watch: Watch,
    changes: Vec<Change>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Settings::new(), Settings::new(), Settings::new())
    }

    fn with(everywhere: Settings, of_worker: Settings, of_job: Settings) -> Self {
        let mut watch = Watch::new(Pace::default(), everywhere);
        let facts = MachineFacts {
            name: "gpu1".into(),
            boot: "boot-1".into(),
            processors: 8,
            settings: of_worker,
        };
        watch.connected(worker(), facts, at(0));
        let facts = AttemptFacts {
            job: JobId(42),
            started_at: at(0),
            settings: of_job,
        };
        watch.know(Fence(1), facts);
        Self {
            watch,
            changes: Vec::new(),
        }
    }

    /// Why episodes ended.
    fn because(&self) -> Vec<Option<Because>> {
        let because = self.changes.iter().filter_map(|change| match change {
            Change::Close { because, .. } => Some(*because),
            _ => None,
        });
        because.collect()
    }

    fn look(&mut self, second: i64, machine: &MachineLook, attempts: &[AttemptLook]) {
        self.watch.look(worker(), machine, attempts, at(second));
        self.changes.extend(self.watch.take_changes());
    }

    /// Looks every five seconds from second `from` on, until before `until`.
    fn run(
        &mut self,
        from: i64,
        until: i64,
        mut see: impl FnMut(i64) -> (MachineLook, Vec<AttemptLook>),
    ) {
        for second in (from..until).step_by(LOOK as usize) {
            let (machine, attempts) = see(second);
            self.look(second, &machine, &attempts);
        }
    }

    fn job(&mut self, from: i64, until: i64, mut see: impl FnMut(i64) -> AttemptLook) {
        self.run(from, until, |second| (idle(), vec![see(second)]));
    }

    fn machine(&mut self, from: i64, until: i64, mut see: impl FnMut(i64, &mut MachineLook)) {
        self.run(from, until, |second| {
            let mut look = idle();
            see(second, &mut look);
            (look, Vec::new())
        });
    }

    fn opened(&self) -> Vec<(Subject, Kind)> {
        let opened = self.changes.iter().filter_map(|change| match change {
            Change::Open(episode) => Some((episode.subject, episode.kind)),
            _ => None,
        });
        opened.collect()
    }

    fn kinds(&self) -> Vec<Kind> {
        self.opened().into_iter().map(|(_, kind)| kind).collect()
    }

    fn closed(&self) -> Vec<Kind> {
        let closed = self.changes.iter().filter_map(|change| match change {
            Change::Close { kind, .. } => Some(*kind),
            _ => None,
        });
        closed.collect()
    }

    fn episode(&self) -> &Episode {
        let first = self.changes.iter().find_map(|change| match change {
            Change::Open(episode) => Some(episode),
            _ => None,
        });
        first.expect("one is open")
    }
}

#[test]
fn processors_that_waver_around_their_limit_are_one_episode() {
    let mut bench = Bench::new();
    let wavering = |second: i64| if second % 10 == 0 { 7.76 } else { 7.44 };
    bench.job(0, 50 * 60, |second| used(wavering(second), GB));
    assert_eq!(bench.opened(), [(Subject::Job(JobId(42)), Kind::Cpu)]);
    let episode = bench.episode();
    assert_eq!((episode.limit, episode.began_at), (95.0, at(0)));
    assert!((episode.peak - 97.0).abs() < 1e-9);
    assert!(bench.closed().is_empty());
}

#[test]
fn a_card_that_wavers_around_its_temperature_is_one_episode() {
    let mut bench = Bench::new();
    bench.machine(0, 4 * HOUR, |second, look| {
        let heat = [79, 81, 80, 78, 82][(second / LOOK % 5) as usize];
        look.used.gpu_temperature = Some(heat);
    });
    assert_eq!(bench.kinds(), [Kind::GpuTemperature]);
    bench.machine(4 * HOUR, 5 * HOUR, |_, look| {
        look.used.gpu_temperature = Some(60)
    });
    assert_eq!(bench.closed(), [Kind::GpuTemperature]);
}

#[test]
fn a_cards_memory_that_wavers_is_one_episode_also_when_it_is_full_all_night() {
    for high in [0.92, 0.99] {
        let mut bench = Bench::new();
        let choice = Settings::from([(Kind::RunTime, Setting::Off)]);
        bench.watch.know(
            Fence(1),
            AttemptFacts {
                job: JobId(42),
                started_at: at(0),
                settings: choice,
            },
        );
        bench.job(0, 9 * HOUR, |second| AttemptLook {
            gpu_memory: Some(if second % 10 == 0 { 0.88 } else { high }),
            ..used(1.0, GB)
        });
        assert_eq!(bench.kinds(), [Kind::GpuMemory], "{high}");
    }
}

#[test]
fn a_spike_is_no_alarm() {
    let mut bench = Bench::new();
    bench.job(0, 55 * 60, |second| {
        let spike = second % 300 < 60;
        AttemptLook {
            gpu_memory: Some(if spike { 0.97 } else { 0.5 }),
            ..used(if spike { 8.0 } else { 1.0 }, GB)
        }
    });
    // Mostly below the limit is none either, although never below the release.
    bench.job(HOUR, HOUR + 50 * 60, |second| {
        used(if second % 60 == 0 { 7.7 } else { 7.0 }, GB)
    });
    assert_eq!(bench.kinds(), [Kind::RunTime]);
}

#[test]
fn a_leak_is_an_alarm_whether_it_is_fast_or_slow() {
    // 2 GB in 10 minutes, in 40, in 2.5 hours and in 10.
    for (name, per_hour) in [
        ("fast", 12.0),
        ("hourly", 3.0),
        ("slow", 0.8),
        ("creeping", 0.2),
    ] {
        let mut bench = Bench::new();
        bench.job(0, 40 * HOUR, |second| {
            let hours = second as f64 / HOUR as f64;
            // What a collection of garbage gives back makes no difference.
            let garbage = (second % 60) as f64 / 60.0 * 0.4;
            used(1.0, (1.0 + hours * per_hour + garbage) * GB)
        });
        let growths = bench
            .kinds()
            .iter()
            .filter(|kind| **kind == Kind::MemoryGrowth)
            .count();
        assert_eq!(growths, 1, "{name}");
    }
}

#[test]
fn a_growth_that_wavers_around_its_limit_is_one_episode() {
    let mut bench = Bench::new();
    bench.job(0, 6 * HOUR, |second| {
        // Between 1.8 and 2.3 GB in the shortest window.
        let quarters = second as f64 / 900.0;
        let wave = (second as f64 / 1_800.0).sin() * 0.1;
        used(1.0, (1.0 + quarters * 1.3 + wave) * GB)
    });
    let growths = bench
        .kinds()
        .iter()
        .filter(|kind| **kind == Kind::MemoryGrowth)
        .count();
    assert_eq!(growths, 1);
    assert!(!bench.closed().contains(&Kind::MemoryGrowth));
}

#[test]
fn a_leak_that_stops_is_over_and_one_that_begins_again_is_another() {
    let mut bench = Bench::new();
    let held = |second: i64| match second {
        0..3_600 => second as f64 / 300.0,
        3_600..14_400 => 12.0,
        _ => 12.0 + (second - 14_400) as f64 / 300.0,
    };
    bench.job(0, 6 * HOUR, |second| used(1.0, held(second) * GB));
    let growths: Vec<_> = bench
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Open(episode) if episode.kind == Kind::MemoryGrowth => Some("open"),
            Change::Close { kind, .. } if *kind == Kind::MemoryGrowth => Some("close"),
            _ => None,
        })
        .collect();
    assert_eq!(growths, ["open", "close", "open"]);
}

#[test]
fn what_is_healthy_is_no_alarm() {
    type Seen = fn(i64) -> AttemptLook;
    let healthy: [(&str, Seen); 6] = [
        // Many short processes, each with its own memory.
        ("pytest", |second| {
            let wave = (second as f64 / 7.0).sin();
            used(2.0 + 2.0 * wave, (1.0 + 0.8 * wave) * GB)
        }),
        ("tqdm", |second| {
            used(
                1.0 + 0.2 * (second % 3) as f64,
                (3.0 + 0.1 * (second % 7) as f64) * GB,
            )
        }),
        // It says nothing and computes on one processor.
        ("quiet", |_| used(1.0, 0.5 * GB)),
        // It takes much within minutes, and again later, and keeps it.
        ("allocator", |second| {
            let taken = match second {
                0..240 => second as f64 / 240.0 * 14.0,
                240..1_800 => 14.0,
                1_800..1_830 => 14.0 + (second - 1_800) as f64 / 3.0,
                _ => 24.0,
            };
            AttemptLook {
                gpu_memory: Some(0.8),
                ..used(3.0, taken * GB)
            }
        }),
        // Each epoch takes memory and gives it back.
        ("epochs", |second| {
            used(4.0, (2.0 + (second % 1_200) as f64 / 200.0) * GB)
        }),
        // The page cache is nobody's.
        ("reader", |second| AttemptLook {
            used: AttemptMeasures {
                resident_bytes: (1.0 + second as f64 / 60.0) as i64 * 1_000_000_000,
                ..used(1.0, GB).used
            },
            ..used(1.0, GB)
        }),
    ];
    for (name, see) in healthy {
        let mut bench = Bench::new();
        bench.job(0, HOUR, see);
        assert!(bench.changes.is_empty(), "{name}: {:?}", bench.changes);
    }
}

#[test]
fn a_host_that_sleeps_is_no_alarm_and_the_history_says_so() {
    for (name, wakes, peak, waking) in [
        (
            "suspended",
            30_600,
            30_005.0,
            MachineLook {
                slept: 30_000.0,
                ..idle()
            },
        ),
        // The coordinator sleeps too when it is there as well.
        (
            "together",
            600,
            30_000.0,
            MachineLook {
                slept: 30_000.0,
                ..idle()
            },
        ),
        // A virtual machine that was stopped sets its clock afterwards.
        (
            "stopped",
            30_600,
            30_005.0,
            MachineLook {
                clock_jump: 30_000.0,
                ..idle()
            },
        ),
    ] {
        let mut bench = Bench::new();
        bench.machine(0, 600, |_, _| {});
        bench.look(wakes, &waking, &[]);
        bench.machine(wakes + 5, wakes + 400, |_, _| {});
        let [Change::Past { episode, why, .. }] = &bench.changes[..] else {
            panic!("{name}: {:?}", bench.changes);
        };
        assert_eq!((episode.kind, *why), (Kind::Looks, Untold::Slept), "{name}");
        assert_eq!(
            (episode.began_at, episode.peak.round()),
            (at(595), peak),
            "{name}"
        );
    }
}

#[test]
fn a_clock_that_is_set_is_told_once() {
    let mut bench = Bench::new();
    bench.machine(0, HOUR, |second, look| match second {
        100 => look.clock_jump = -7_200.0,
        200 => look.clock_jump = -3_600.0,
        // What a clock that is kept right does.
        300.. => look.clock_jump = 0.02,
        _ => {}
    });
    assert_eq!(bench.kinds(), [Kind::Clock]);
    assert_eq!(bench.episode().peak, 7_200.0);
    assert_eq!(bench.closed(), [Kind::Clock]);
}

#[test]
fn a_run_time_is_told_from_its_limit_on() {
    let mut bench = Bench::new();
    bench.job(0, HOUR, |_| used(1.0, GB));
    assert!(bench.changes.is_empty());
    bench.job(HOUR, 3 * HOUR, |_| used(1.0, GB));
    assert_eq!(bench.kinds(), [Kind::RunTime]);
    bench.watch.left(Fence(1), at(3 * HOUR));
    bench.changes.extend(bench.watch.take_changes());
    assert_eq!(bench.closed(), [Kind::RunTime]);
    assert!(bench.watch.attempts().is_empty());
}

#[test]
fn the_most_particular_choice_counts() {
    let cpu = |chosen| Settings::from([(Kind::Cpu, chosen)]);
    let none = Settings::new();
    for (everywhere, of_worker, of_job, limit) in [
        (&none, &none, &none, Some(95.0)),
        (&cpu(Setting::Off), &none, &none, None),
        (&cpu(Setting::Off), &cpu(Setting::At(60)), &none, Some(60.0)),
        (
            &cpu(Setting::Off),
            &cpu(Setting::At(60)),
            &cpu(Setting::On),
            Some(95.0),
        ),
        (&none, &none, &cpu(Setting::Off), None),
        (&none, &cpu(Setting::Off), &cpu(Setting::At(70)), Some(70.0)),
    ] {
        let mut bench = Bench::with(everywhere.clone(), of_worker.clone(), of_job.clone());
        bench.job(0, 20 * 60, |_| used(8.0, GB));
        let seen = bench.changes.iter().find_map(|change| match change {
            Change::Open(episode) => Some(episode.limit),
            _ => None,
        });
        assert_eq!(seen, limit);
    }
}

#[test]
fn the_machine_is_busy_only_when_no_job_is_it_alone() {
    let mut bench = Bench::new();
    bench.run(0, 40 * 60, |_| {
        let mut machine = idle();
        machine.used.busy = Some(0.99);
        (machine, vec![used(7.0, GB)])
    });
    assert!(bench.changes.is_empty(), "{:?}", bench.changes);
    bench.run(HOUR, HOUR + 40 * 60, |_| {
        let mut machine = idle();
        machine.used.busy = Some(0.99);
        (machine, vec![used(3.0, GB)])
    });
    let opened = bench.opened();
    assert!(
        opened.contains(&(Subject::Worker(worker()), Kind::Cpu)),
        "{opened:?}"
    );
}

#[test]
fn a_disk_that_fills_is_told_and_has_to_be_cleared() {
    let mut bench = Bench::new();
    let free = |second: i64| match second {
        0..600 => 25.0,
        600..1_200 => 19.0,
        // Not enough.
        1_200..1_800 => 35.0,
        _ => 45.0,
    };
    bench.machine(0, 2_400, |second, look| {
        look.used.disk_free_bytes = Some((free(second) * GB) as i64);
    });
    assert_eq!(bench.kinds(), [Kind::Disk]);
    assert_eq!(bench.closed(), [Kind::Disk]);
    let episode = bench.episode();
    assert_eq!((episode.limit, episode.peak), (20.0 * GB, 19.0 * GB));
    // A twentieth of a small one.
    let mut bench = Bench::new();
    bench.machine(0, 600, |second, look| {
        look.used.disk_total_bytes = Some(16_000_000);
        look.used.disk_free_bytes = Some(if second < 300 { 1_000_000 } else { 700_000 });
    });
    assert_eq!(bench.episode().limit, 800_000.0);
}

#[test]
fn one_disk_of_coordinator_and_worker_is_told_once() {
    let mut bench = Bench::new();
    let disk = Disk {
        free: 1_000_000_000,
        total: 1_000_000_000_000,
    };
    for second in (0..300).step_by(5) {
        bench
            .watch
            .own_disk(&own("gpu1", "boot-1"), disk, at(second));
        let mut look = idle();
        look.used.disk_free_bytes = Some(disk.free);
        bench.look(second, &look, &[]);
    }
    assert_eq!(bench.opened(), [(Subject::Coordinator, Kind::Disk)]);
}

/// Two machines may have the same name and disks of the same size.
#[test]
fn the_disk_of_a_machine_that_is_called_the_same_is_told_as_well() {
    for boot in ["boot-2", ""] {
        let mut bench = Bench::new();
        let disk = Disk {
            free: 500_000_000_000,
            total: 1_000_000_000_000,
        };
        for second in (0..300).step_by(5) {
            bench.watch.own_disk(&own("gpu1", boot), disk, at(second));
            let mut look = idle();
            look.used.disk_free_bytes = Some(1_000_000_000);
            bench.look(second, &look, &[]);
        }
        assert_eq!(bench.opened(), [(Subject::Worker(worker()), Kind::Disk)]);
    }
}

#[test]
fn neither_another_coordinators_machine_nor_being_switched_off_is_a_recovery() {
    let full = Disk {
        free: 1_000_000_000,
        total: 1_000_000_000_000,
    };
    let empty = Disk {
        free: 900_000_000_000,
        ..full
    };
    let mut bench = Bench::new();
    for second in (0..300).step_by(5) {
        bench.watch.own_disk(&own("a", "boot-a"), full, at(second));
    }
    bench.changes.extend(bench.watch.take_changes());
    // The coordinator of the next term finds what was recorded.
    let mut after = Bench::new();
    after.watch.restore(vec![bench.episode().clone()], at(300));
    for second in (300..600).step_by(5) {
        after.watch.own_disk(&own("b", "boot-b"), empty, at(second));
    }
    after.changes.extend(after.watch.take_changes());
    assert_eq!(after.because(), [Some(Because::OtherMachine)]);
    // On the same machine it is one when there is room.
    let mut after = Bench::new();
    after.watch.restore(vec![bench.episode().clone()], at(300));
    for second in (300..600).step_by(5) {
        after.watch.own_disk(&own("a", "boot-c"), empty, at(second));
    }
    after.changes.extend(after.watch.take_changes());
    assert_eq!(after.because(), [None]);

    let off = Settings::from([(Kind::Disk, Setting::Off)]);
    let mut after = Bench::with(off, Settings::new(), Settings::new());
    after.watch.restore(vec![bench.episode().clone()], at(300));
    after.watch.own_disk(&own("a", "boot-a"), full, at(305));
    after.changes.extend(after.watch.take_changes());
    assert_eq!(after.because(), [Some(Because::SwitchedOff)]);
}

#[test]
fn a_disk_that_the_coordinator_tells_is_not_open_twice() {
    let mut bench = Bench::new();
    bench.machine(0, 300, |_, look| {
        look.used.disk_free_bytes = Some(1_000_000_000);
    });
    assert_eq!(bench.opened(), [(Subject::Worker(worker()), Kind::Disk)]);
    let disk = Disk {
        free: 1_000_000_000,
        total: 1_000_000_000_000,
    };
    bench.watch.own_disk(&own("gpu1", "boot-1"), disk, at(300));
    bench.machine(300, 310, |_, look| {
        look.used.disk_free_bytes = Some(1_000_000_000);
    });
    assert_eq!(bench.because(), [Some(Because::SameDisk)]);
}

#[test]
fn memory_that_runs_out_and_its_victims_are_told_a_little_later() {
    let mut bench = Bench::new();
    bench.machine(0, 30 * 60, |second, look| {
        if (100..400).contains(&second) {
            look.used.memory_available_bytes = Some(1_000_000_000);
        }
        if second == 200 || second == 210 {
            look.oom_kills = 2;
        }
    });
    assert_eq!(bench.kinds(), [Kind::Memory, Kind::OutOfMemory]);
    assert_eq!(bench.closed(), [Kind::Memory, Kind::OutOfMemory]);
    let kills = bench.changes.iter().find_map(|change| match change {
        Change::Open(episode) if episode.kind == Kind::OutOfMemory => Some(episode.clone()),
        _ => None,
    });
    let kills = kills.unwrap();
    assert_eq!((kills.peak, kills.began_at), (4.0, at(200)));
}

#[test]
fn looks_that_hang_are_told_once_while_the_worker_lives() {
    let mut bench = Bench::new();
    bench.machine(0, 300, |_, _| {});
    for second in (300..1_200).step_by(5) {
        bench.watch.beat_without_look(worker(), at(second));
    }
    bench.machine(1_200, 1_300, |_, _| {});
    bench.changes.extend(bench.watch.take_changes());
    assert_eq!(bench.kinds(), [Kind::Looks]);
    assert_eq!(bench.closed(), [Kind::Looks]);
    assert_eq!(bench.episode().began_at, at(295));
    assert!(
        bench
            .changes
            .iter()
            .all(|change| !matches!(change, Change::Past { .. }))
    );
}

#[test]
fn a_worker_that_is_away_neither_opens_nor_closes() {
    let mut bench = Bench::new();
    let hot = |_: i64, look: &mut MachineLook| look.used.gpu_temperature = Some(90);
    bench.machine(0, 55, hot);
    // It is back an hour later: the hour is no minute of heat.
    let facts = bench.watch.machine(worker()).unwrap().clone();
    bench.watch.connected(worker(), facts.clone(), at(HOUR));
    bench.machine(HOUR, HOUR + 50, hot);
    assert!(bench.kinds().is_empty(), "{:?}", bench.changes);
    bench.machine(HOUR + 50, HOUR + 120, hot);
    assert_eq!(bench.kinds(), [Kind::GpuTemperature]);
    // And an hour away is no hour of cold.
    let cool = |_: i64, look: &mut MachineLook| look.used.gpu_temperature = Some(40);
    bench.machine(HOUR + 120, HOUR + 180, cool);
    bench.watch.connected(worker(), facts, at(3 * HOUR));
    bench.machine(3 * HOUR, 3 * HOUR + 240, cool);
    assert!(bench.closed().is_empty());
    bench.machine(3 * HOUR + 240, 3 * HOUR + 400, cool);
    assert_eq!(bench.closed(), [Kind::GpuTemperature]);
    let whys: Vec<_> = bench
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Past { why, .. } => Some(*why),
            _ => None,
        })
        .collect();
    assert_eq!(whys, [Untold::Away, Untold::Away]);
}

#[test]
fn what_was_open_before_a_restart_goes_on_and_is_not_told_again() {
    let mut bench = Bench::new();
    bench.job(0, 20 * 60, |_| used(8.0, GB));
    let open = bench.episode().clone();
    let mut after = Bench::new();
    after.watch.restore(vec![open], at(1_300));
    after.job(1_300, 3_000, |_| used(8.0, GB));
    assert!(after.changes.is_empty(), "{:?}", after.changes);
    assert_eq!(after.watch.attempts(), [Fence(1)]);
    after.job(3_000, 3_599, |_| used(0.5, GB));
    after.job(3_600, 3_610, |_| used(0.5, GB));
    assert_eq!(after.closed(), [Kind::Cpu]);
}

#[test]
fn what_is_switched_off_meanwhile_is_over() {
    let mut bench = Bench::new();
    bench.machine(0, 300, |_, look| look.used.gpu_temperature = Some(90));
    let off = MachineFacts {
        settings: Settings::from([(Kind::GpuTemperature, Setting::Off)]),
        ..bench.watch.machine(worker()).unwrap().clone()
    };
    bench.watch.connected(worker(), off, at(300));
    bench.machine(300, 400, |_, look| look.used.gpu_temperature = Some(90));
    assert_eq!(bench.kinds(), [Kind::GpuTemperature]);
    assert_eq!(bench.closed(), [Kind::GpuTemperature]);
}

#[test]
fn a_worse_figure_is_recorded_now_and_then() {
    let mut bench = Bench::new();
    bench.machine(0, 300, |_, look| look.used.gpu_temperature = Some(85));
    bench.machine(300, 310, |_, look| look.used.gpu_temperature = Some(91));
    let peaks = bench.watch.take_peaks(at(310));
    assert_eq!(
        peaks,
        [(Subject::Worker(worker()), Kind::GpuTemperature, 91.0)]
    );
    assert!(bench.watch.take_peaks(at(400)).is_empty());
}

#[test]
fn what_was_not_recorded_is_recorded_later_in_order() {
    let mut watch = Bench::new();
    watch.job(0, 20 * 60, |_| used(8.0, GB));
    let changes = watch.changes.clone();
    watch.watch.left(Fence(1), at(1_300));
    watch.watch.put_back(changes.clone());
    let again = watch.watch.take_changes();
    assert_eq!(again[..changes.len()], changes[..]);
    assert!(matches!(again[changes.len()], Change::Close { .. }));
}

#[test]
fn the_notice_has_figures_and_respects_wishes() {
    let mut bench = Bench::new();
    bench.job(0, 2 * HOUR, |second| {
        used(8.0, (1.0 + second as f64 / 300.0) * GB)
    });
    let episodes: Vec<_> = bench
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Open(episode) => Some(episode),
            _ => None,
        })
        .collect();
    let about = |wish| telling::About {
        attempt: AttemptNumber(2),
        wish,
    };
    let of = |kind| {
        *episodes
            .iter()
            .find(|episode| episode.kind == kind)
            .unwrap()
    };
    let notice = telling::begins(of(Kind::MemoryGrowth), Some(&about(Wish::Default)));
    assert_eq!(notice.class, Class::JobGrows);
    assert_eq!(notice.subject, "job 42");
    assert_eq!(notice.details.limit, "2.0 GB");
    assert!(
        notice.details.value.ends_with(" GB"),
        "{:?}",
        notice.details
    );
    assert!(!notice.muted);
    assert!(!telling::begins(of(Kind::MemoryGrowth), Some(&about(Wish::Failure))).muted);
    assert!(telling::begins(of(Kind::Cpu), Some(&about(Wish::Failure))).muted);
    assert!(telling::begins(of(Kind::Cpu), Some(&about(Wish::Never))).muted);
    let long = telling::begins(of(Kind::RunTime), Some(&about(Wish::Default)));
    assert_eq!(long.details.seconds, Some(3_600));
    assert!(telling::ends(Subject::Job(JobId(42)), Kind::Cpu, "gpu1").is_none());
    let well = telling::ends(Subject::Coordinator, Kind::Disk, "gpu1").unwrap();
    assert_eq!(well.class.ends(), Some(Class::DiskNearlyFull));
    assert_eq!(well.subject, "disk of gpu1");
}

#[test]
fn choices_that_cannot_be_made_are_named() {
    let one = |kind, chosen| Settings::from([(kind, chosen)]);
    let first = super::setting::first_impossible;
    assert!(first(&one(Kind::Cpu, Setting::At(90)), true).is_none());
    assert!(first(&one(Kind::Disk, Setting::Off), false).is_none());
    let (kind, _) = first(&one(Kind::Disk, Setting::Off), true).unwrap();
    assert_eq!(kind, Kind::Disk);
    let (_, problem) = first(&one(Kind::Cpu, Setting::At(101)), true).unwrap();
    assert_eq!(problem, "is 101, not between 1 and 100");
}
