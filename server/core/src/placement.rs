//! Which job goes to which worker.
//!
//! Jobs are offered in their order: priority, then sequence number. Each takes the least loaded
//! worker with room. The first job that a worker could take but has no room for *reserves* that
//! worker: later jobs fill in there only where they cannot delay it. A worker that turns jobs over
//! quickly may keep some ready beyond its slots; such a job can be taken back until it starts, and
//! is, when a better place or a better job turns up.

use std::cmp::Reverse;

use chrono::{DateTime, TimeDelta, Utc};

use crate::id::{Fence, JobId, WorkerId};
use crate::spec::Demand;

/// A place in the queue: smaller comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(Reverse<i32>, JobId);

impl Order {
    /// The place of a job.
    pub fn new(priority: i32, job: JobId) -> Self {
        Self(Reverse(priority), job)
    }

    /// The job.
    pub fn job(self) -> JobId {
        self.1
    }
}

/// A connected worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its identity.
    pub id: WorkerId,
    /// Its name, which jobs may be pinned to.
    pub name: String,
    /// It takes new jobs: neither it nor the queue is paused, and it is not draining.
    pub accepts: bool,
    /// Slots that it has.
    pub slots: i32,
    /// UUIDs of its GPUs.
    pub gpus: Vec<String>,
    /// Its memory in bytes; 0 when unknown, which limits nothing.
    pub memory_bytes: i64,
    /// Jobs that it may keep ready beyond its slots: none while its jobs take long, more the shorter
    /// they have been lately.
    pub ready: usize,
    /// What occupies it, in the order of assignment.
    pub held: Vec<Holding>,
}

/// An attempt that occupies a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The attempt.
    pub fence: Fence,
    /// Its job's place in the queue.
    pub order: Order,
    /// What it occupies.
    pub demand: Demand,
    /// The GPUs among it.
    pub gpus: Vec<String>,
    /// It runs beside the slots.
    pub beside_slots: bool,
    /// It has not started.
    pub assigned: bool,
    /// It was asked back already.
    pub asked_back: bool,
    /// Only this worker may run it.
    pub bound: bool,
    /// When its time limit ends it at the latest.
    pub ends_by: Option<DateTime<Utc>>,
}

/// A queued job that no worker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The job.
    pub job: JobId,
    /// Its place in the queue.
    pub order: Order,
    /// What it needs.
    pub demand: Demand,
    /// Name of the only worker that may run it.
    pub pinned: Option<String>,
    /// The only worker that has its checkpoint.
    pub checkpoint_on: Option<WorkerId>,
    /// Its longest run time.
    pub time_limit: Option<TimeDelta>,
}

/// What becomes of an offered job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It goes to a worker.
    Assign {
        /// The worker.
        worker: WorkerId,
        /// The GPUs it gets.
        gpus: Vec<String>,
    },
    /// It is the next one on a worker that has no room for it now.
    Reserved {
        /// The worker.
        worker: WorkerId,
        /// When it can start at the latest; `None` when nobody knows.
        from: Option<DateTime<Utc>>,
    },
    /// It waits behind others.
    Behind,
    /// No worker that takes jobs could ever run it.
    Impossible,
}

/// One round of placing.
#[derive(Clone, Debug)]
pub struct Placement {
    now: DateTime<Utc>,
    workers: Vec<State>,
    asked_back: Vec<Fence>,
}

#[derive(Clone, Debug)]
struct State {
    worker: Worker,
    free: Free,
    /// Attempts that are ready there and do not fit into its slots yet.
    ready: Vec<Holding>,
    reserved: Option<Reservation>,
}

#[derive(Clone, Copy, Debug)]
struct Reservation {
    demand: Demand,
    from: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug)]
struct Free {
    slots: i32,
    gpus: Vec<String>,
    memory_bytes: i64,
}

impl Free {
    fn fits(&self, demand: &Demand) -> bool {
        self.slots >= demand.slots && self.fits_beside(demand)
    }

    fn fits_beside(&self, demand: &Demand) -> bool {
        self.gpus.len() >= demand.gpus.max(0) as usize
            && (demand.memory_bytes == 0 || self.memory_bytes >= demand.memory_bytes)
    }

    /// Takes the demand and says which GPUs it got: `wanted` ones, or the first free ones.
    fn take(&mut self, demand: &Demand, beside_slots: bool, wanted: &[String]) -> Vec<String> {
        if !beside_slots {
            self.slots -= demand.slots;
        }
        self.memory_bytes = self.memory_bytes.saturating_sub(demand.memory_bytes);
        if wanted.is_empty() {
            let count = (demand.gpus.max(0) as usize).min(self.gpus.len());
            return self.gpus.drain(..count).collect();
        }
        self.gpus.retain(|gpu| !wanted.contains(gpu));
        wanted.to_vec()
    }

    fn give_back(&mut self, holding: &Holding) {
        if !holding.beside_slots {
            self.slots += holding.demand.slots;
        }
        self.memory_bytes = self
            .memory_bytes
            .saturating_add(holding.demand.memory_bytes);
        self.gpus.extend(holding.gpus.iter().cloned());
    }
}

impl State {
    fn new(mut worker: Worker) -> Self {
        let mut free = total(&worker);
        let mut ready = Vec::new();
        let held = std::mem::take(&mut worker.held);
        // What runs comes first: what is only assigned starts in what is left.
        let (assigned, running): (Vec<_>, Vec<_>) = held
            .into_iter()
            .partition(|holding| holding.assigned && !holding.beside_slots);
        for holding in running {
            free.take(&holding.demand, holding.beside_slots, &holding.gpus);
            worker.held.push(holding);
        }
        for holding in assigned {
            if free.slots >= holding.demand.slots {
                free.take(&holding.demand, false, &holding.gpus);
                worker.held.push(holding);
            } else {
                // It waits for slots with its GPUs named: they are nobody else's meanwhile.
                free.gpus.retain(|gpu| !holding.gpus.contains(gpu));
                ready.push(holding);
            }
        }
        Self {
            worker,
            free,
            ready,
            reserved: None,
        }
    }

    fn suits(&self, candidate: &Candidate) -> bool {
        self.worker.accepts
            && candidate
                .pinned
                .as_ref()
                .is_none_or(|name| *name == self.worker.name)
            && candidate
                .checkpoint_on
                .is_none_or(|id| id == self.worker.id)
            && total(&self.worker).fits(&candidate.demand)
    }

    /// True when the demand fits and does not delay the job that reserved this worker.
    fn has_room(&self, demand: &Demand, limit: Option<TimeDelta>, now: DateTime<Utc>) -> bool {
        if !self.free.fits(demand) {
            return false;
        }
        let Some(reserved) = self.reserved else {
            return true;
        };
        let ends_before = match (limit, reserved.from) {
            (Some(limit), Some(from)) => now + limit <= from,
            _ => false,
        };
        ends_before || self.leaves_enough_for(&reserved.demand, demand)
    }

    /// True when the demand takes only what the reservation is not short of.
    fn leaves_enough_for(&self, reserved: &Demand, demand: &Demand) -> bool {
        let free = &self.free;
        let enough = |taken: i64, free: i64, needed: i64| taken == 0 || free - taken >= needed;
        enough(
            demand.slots.into(),
            free.slots.into(),
            reserved.slots.into(),
        ) && enough(
            demand.gpus.into(),
            free.gpus.len() as i64,
            reserved.gpus.into(),
        ) && enough(
            demand.memory_bytes,
            free.memory_bytes,
            reserved.memory_bytes,
        )
    }

    /// When the time limits of what runs there make room for the demand.
    fn room_from(&self, demand: &Demand, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut free = self.free.clone();
        let mut from = now;
        let mut held: Vec<&Holding> = self.worker.held.iter().collect();
        held.sort_by_key(|holding| (holding.ends_by.is_none(), holding.ends_by));
        for holding in held {
            if free.fits(demand) {
                return Some(from);
            }
            from = from.max(holding.ends_by?);
            free.give_back(holding);
        }
        free.fits(demand).then_some(from)
    }

    fn has_ready_place(&self) -> bool {
        self.worker.accepts
            && self.ready.len() < self.worker.ready
            && self.reserved.is_none()
            && self.free.slots <= 0
    }

    fn take(&mut self, demand: &Demand) -> Vec<String> {
        self.free.take(demand, false, &[])
    }
}

fn total(worker: &Worker) -> Free {
    Free {
        slots: worker.slots,
        gpus: worker.gpus.clone(),
        memory_bytes: match worker.memory_bytes {
            0 => i64::MAX,
            known => known,
        },
    }
}

impl Placement {
    /// Begins a round.
    pub fn new(workers: Vec<Worker>, now: DateTime<Utc>) -> Self {
        let mut placement = Self {
            now,
            workers: workers.into_iter().map(State::new).collect(),
            asked_back: Vec::new(),
        };
        placement.workers.sort_by_key(|state| state.worker.id);
        placement.ask_back_what_may_not_start();
        placement
    }

    /// True while a job at this place in the queue could find a place, or take that of one that is
    /// only ready and behind it. Once it is false for a job, it is so for all behind it.
    pub fn wants(&self, order: Order) -> bool {
        self.workers.iter().any(|state| {
            state.worker.accepts
                && (state.free.slots > 0
                    || state.has_ready_place()
                    || state.ready.iter().any(|ready| order < ready.order))
        })
    }

    /// How many jobs could find a place or take one at most; none when it is of no use to look.
    pub fn places(&self) -> usize {
        self.workers
            .iter()
            .filter(|state| state.worker.accepts)
            .map(|state| {
                usize::try_from(state.free.slots).unwrap_or_default()
                    + state.worker.ready.max(state.ready.len())
            })
            .sum()
    }

    /// Offers the next job in order.
    pub fn offer(&mut self, candidate: &Candidate) -> Placed {
        self.move_ready(Some(candidate.order));
        let suitable: Vec<usize> = (0..self.workers.len())
            .filter(|index| self.workers[*index].suits(candidate))
            .collect();
        if suitable.is_empty() {
            return Placed::Impossible;
        }
        if let Some(index) = self.least_loaded(&suitable, &candidate.demand, candidate.time_limit) {
            let state = &mut self.workers[index];
            let gpus = state.take(&candidate.demand);
            return Placed::Assign {
                worker: state.worker.id,
                gpus,
            };
        }
        if let Some(index) = self.ready_place(&suitable, candidate) {
            let state = &mut self.workers[index];
            state.ready.push(Holding {
                fence: Fence(0),
                order: candidate.order,
                demand: candidate.demand,
                gpus: Vec::new(),
                beside_slots: false,
                assigned: true,
                asked_back: true,
                bound: true,
                ends_by: None,
            });
            return Placed::Assign {
                worker: state.worker.id,
                gpus: Vec::new(),
            };
        }
        self.reserve(&suitable, candidate)
    }

    /// Places a job that a person wants to start on a worker now, beside its slots. `None` when the
    /// worker is not connected or has not the GPUs or the memory for it.
    pub fn place_now(&mut self, worker: WorkerId, demand: &Demand) -> Option<Vec<String>> {
        let state = self
            .workers
            .iter_mut()
            .find(|state| state.worker.id == worker)?;
        if !state.free.fits_beside(demand) {
            return None;
        }
        Some(state.free.take(demand, true, &[]))
    }

    /// Ends the round: attempts that are to be asked back, because a better place or a better job
    /// has turned up.
    pub fn finish(mut self) -> Vec<Fence> {
        self.move_ready(None);
        self.asked_back.sort_unstable();
        self.asked_back
    }

    /// Attempts that are ready at a worker which takes no jobs any more, or that would wait there
    /// behind a long job although another worker could have them.
    fn ask_back_what_may_not_start(&mut self) {
        for index in 0..self.workers.len() {
            let state = &self.workers[index];
            let stuck: Vec<Holding> = state
                .ready
                .iter()
                .filter(|ready| {
                    !state.worker.accepts
                        || (state.worker.ready == 0
                            && !ready.bound
                            && self.workers.iter().enumerate().any(|(other, state)| {
                                other != index
                                    && state.worker.accepts
                                    && total(&state.worker).fits(&ready.demand)
                            }))
                })
                .cloned()
                .collect();
            for ready in stuck {
                self.ask_back(index, &ready);
            }
        }
    }

    /// Asks for ready attempts back that are ahead of `before` and for which another worker has room
    /// now, and keeps that room for them.
    fn move_ready(&mut self, before: Option<Order>) {
        let mut ready: Vec<(usize, Holding)> = self
            .workers
            .iter()
            .enumerate()
            .flat_map(|(index, state)| state.ready.iter().map(move |ready| (index, ready.clone())))
            .filter(|(_, ready)| !ready.bound && before.is_none_or(|before| ready.order < before))
            .collect();
        ready.sort_by_key(|(_, ready)| ready.order);
        for (index, ready) in ready {
            let others: Vec<usize> = (0..self.workers.len())
                .filter(|other| *other != index && self.workers[*other].worker.accepts)
                .collect();
            if let Some(other) = self.least_loaded(&others, &ready.demand, None) {
                self.workers[other].take(&ready.demand);
                self.ask_back(index, &ready);
            }
        }
    }

    fn ask_back(&mut self, index: usize, ready: &Holding) {
        self.workers[index]
            .ready
            .retain(|other| other.fence != ready.fence);
        if !ready.asked_back {
            self.asked_back.push(ready.fence);
        }
    }

    fn least_loaded(
        &self,
        among: &[usize],
        demand: &Demand,
        limit: Option<TimeDelta>,
    ) -> Option<usize> {
        among
            .iter()
            .copied()
            .filter(|index| self.workers[*index].has_room(demand, limit, self.now))
            .min_by_key(|index| {
                let state = &self.workers[*index];
                // Slots in use, in thousandths of what the worker has.
                let used = i64::from(state.worker.slots - state.free.slots) * 1_000
                    / i64::from(state.worker.slots.max(1));
                (state.reserved.is_some(), used, Reverse(state.free.slots))
            })
    }

    /// A worker that keeps the job ready behind others. Workers start what is ready in the order of
    /// assignment, so that a job never goes behind one that it is ahead of.
    fn ready_place(&self, suitable: &[usize], candidate: &Candidate) -> Option<usize> {
        let plain = Demand::default();
        if candidate.demand != plain {
            return None;
        }
        suitable
            .iter()
            .copied()
            .filter(|index| {
                let state = &self.workers[*index];
                let ahead = |ready: &Holding| ready.order < candidate.order;
                state.has_ready_place() && state.ready.iter().all(ahead)
            })
            .max_by_key(|index| self.workers[*index].worker.slots)
    }

    fn reserve(&mut self, suitable: &[usize], candidate: &Candidate) -> Placed {
        let now = self.now;
        let best = suitable
            .iter()
            .copied()
            .filter(|index| self.workers[*index].reserved.is_none())
            .map(|index| (index, self.workers[index].room_from(&candidate.demand, now)))
            .min_by_key(|(index, from)| (from.is_none(), *from, self.workers[*index].worker.id));
        let Some((index, from)) = best else {
            return Placed::Behind;
        };
        self.workers[index].reserved = Some(Reservation {
            demand: candidate.demand,
            from,
        });
        // What is only ready there would start before this job although it is behind it.
        let behind: Vec<Holding> = self.workers[index]
            .ready
            .iter()
            .filter(|ready| candidate.order < ready.order)
            .cloned()
            .collect();
        for ready in behind {
            self.ask_back(index, &ready);
        }
        Placed::Reserved {
            worker: self.workers[index].worker.id,
            from,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn id(number: u128) -> WorkerId {
        WorkerId(Uuid::from_u128(number))
    }

    fn worker(number: u128, slots: i32) -> Worker {
        Worker {
            id: id(number),
            name: format!("w{number}"),
            accepts: true,
            slots,
            gpus: Vec::new(),
            memory_bytes: 0,
            ready: 0,
            held: Vec::new(),
        }
    }

    fn gpu_worker(number: u128, slots: i32, gpus: usize) -> Worker {
        Worker {
            gpus: (0..gpus).map(|gpu| format!("gpu{gpu}")).collect(),
            ..worker(number, slots)
        }
    }

    fn needs(slots: i32, gpus: i32) -> Demand {
        Demand {
            slots,
            gpus,
            memory_bytes: 0,
        }
    }

    fn holding(job: i64, demand: Demand) -> Holding {
        Holding {
            fence: Fence(job),
            order: Order::new(0, JobId(job)),
            demand,
            gpus: Vec::new(),
            beside_slots: false,
            assigned: false,
            asked_back: false,
            bound: false,
            ends_by: None,
        }
    }

    fn job(number: i64, demand: Demand) -> Candidate {
        Candidate {
            job: JobId(number),
            order: Order::new(0, JobId(number)),
            demand,
            pinned: None,
            checkpoint_on: None,
            time_limit: None,
        }
    }

    fn limited(number: i64, demand: Demand, seconds: i64) -> Candidate {
        Candidate {
            time_limit: Some(TimeDelta::seconds(seconds)),
            ..job(number, demand)
        }
    }

    fn to(worker: u128) -> Placed {
        Placed::Assign {
            worker: id(worker),
            gpus: Vec::new(),
        }
    }

    #[test]
    fn priority_first_then_sequence() {
        assert!(Order::new(1, JobId(9)) < Order::new(0, JobId(1)));
        assert!(Order::new(0, JobId(1)) < Order::new(0, JobId(2)));
        assert!(Order::new(-1, JobId(1)) > Order::new(0, JobId(2)));
    }

    #[test]
    fn the_least_loaded_worker_is_taken() {
        let mut busy = worker(1, 4);
        busy.held.push(holding(1, needs(1, 0)));
        let mut placement = Placement::new(vec![busy, worker(2, 2)], at(0));
        let targets: Vec<Placed> = (10..16)
            .map(|number| placement.offer(&job(number, needs(1, 0))))
            .collect();
        assert_eq!(targets[0], to(2));
        assert_eq!(targets[1], to(1));
        assert!(
            !targets[..5]
                .iter()
                .any(|placed| !matches!(placed, Placed::Assign { .. }))
        );
        assert!(matches!(targets[5], Placed::Reserved { .. }));
        assert!(!placement.wants(Order::new(0, JobId(16))));
    }

    #[test]
    fn what_fits_nowhere_blocks_nobody() {
        let mut placement = Placement::new(vec![worker(1, 1)], at(0));
        assert_eq!(placement.offer(&job(1, needs(1, 1))), Placed::Impossible);
        assert_eq!(placement.offer(&job(2, needs(2, 0))), Placed::Impossible);
        let pinned = Candidate {
            pinned: Some("elsewhere".into()),
            ..job(3, needs(1, 0))
        };
        assert_eq!(placement.offer(&pinned), Placed::Impossible);
        assert_eq!(placement.offer(&job(4, needs(1, 0))), to(1));
    }

    #[test]
    fn the_first_that_does_not_fit_reserves() {
        let mut busy = worker(1, 4);
        let mut running = holding(1, needs(2, 0));
        running.ends_by = Some(at(100));
        busy.held.push(running);
        let mut placement = Placement::new(vec![busy], at(0));
        assert_eq!(
            placement.offer(&job(2, needs(4, 0))),
            Placed::Reserved {
                worker: id(1),
                from: Some(at(100))
            }
        );
        assert_eq!(placement.offer(&job(3, needs(1, 0))), Placed::Behind);
        assert_eq!(
            placement.offer(&limited(4, needs(1, 0), 101)),
            Placed::Behind
        );
        assert_eq!(placement.offer(&limited(5, needs(1, 0), 100)), to(1));
    }

    #[test]
    fn an_unknown_start_lets_nobody_fill_in() {
        let mut busy = worker(1, 4);
        busy.held.push(holding(1, needs(2, 0)));
        let mut placement = Placement::new(vec![busy], at(0));
        assert!(matches!(
            placement.offer(&job(2, needs(3, 0))),
            Placed::Reserved { from: None, .. }
        ));
        assert_eq!(placement.offer(&limited(3, needs(1, 0), 1)), Placed::Behind);
    }

    #[test]
    fn what_the_reservation_is_not_short_of_may_be_taken() {
        let mut busy = gpu_worker(1, 8, 2);
        let mut running = holding(1, needs(1, 1));
        running.gpus = vec!["gpu0".into()];
        busy.held.push(running);
        let mut placement = Placement::new(vec![busy], at(0));
        assert!(matches!(
            placement.offer(&job(2, needs(1, 2))),
            Placed::Reserved { .. }
        ));
        assert_eq!(placement.offer(&job(3, needs(1, 1))), Placed::Behind);
        for number in 4..10 {
            assert_eq!(
                placement.offer(&job(number, needs(1, 0))),
                to(1),
                "job {number}"
            );
        }
        assert_eq!(placement.offer(&job(10, needs(1, 0))), Placed::Behind);
    }

    /// The simulation's seed 379245.
    #[test]
    fn gpus_of_what_waits_for_slots_are_nobody_elses() {
        let mut busy = gpu_worker(1, 2, 1);
        busy.held.push(holding(1, needs(1, 0)));
        let waits = Holding {
            assigned: true,
            bound: true,
            gpus: vec!["gpu0".into()],
            ..holding(2, needs(2, 1))
        };
        busy.held.push(waits);
        let mut placement = Placement::new(vec![busy], at(0));
        let placed = placement.offer(&job(3, needs(1, 1)));
        assert!(!matches!(placed, Placed::Assign { .. }), "{placed:?}");
    }

    #[test]
    fn gpus_are_handed_out_by_name() {
        let mut placement = Placement::new(vec![gpu_worker(1, 8, 3)], at(0));
        let gpus = |placed| match placed {
            Placed::Assign { gpus, .. } => gpus,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            gpus(placement.offer(&job(1, needs(1, 2)))),
            ["gpu0", "gpu1"]
        );
        assert_eq!(gpus(placement.offer(&job(2, needs(1, 1)))), ["gpu2"]);
        assert!(matches!(
            placement.offer(&job(3, needs(1, 1))),
            Placed::Reserved { .. }
        ));
    }

    #[test]
    fn a_quick_worker_keeps_plain_jobs_ready() {
        let mut quick = worker(1, 1);
        quick.ready = 2;
        quick.held.push(holding(1, needs(1, 0)));
        let mut placement = Placement::new(vec![quick], at(0));
        assert!(placement.wants(Order::new(0, JobId(2))));
        assert_eq!(placement.places(), 2);
        assert_eq!(placement.offer(&job(2, needs(1, 0))), to(1));
        assert_eq!(placement.offer(&job(3, needs(1, 0))), to(1));
        assert!(matches!(
            placement.offer(&job(4, needs(1, 0))),
            Placed::Reserved { .. }
        ));
        assert_eq!(placement.finish(), []);
    }

    #[test]
    fn a_job_never_goes_behind_one_that_it_is_ahead_of() {
        let mut placement = Placement::new(vec![with_ready(1, 5, 1, 3)], at(0));
        assert!(matches!(
            placement.offer(&job(2, needs(1, 0))),
            Placed::Reserved { .. }
        ));
        assert_eq!(placement.finish(), [Fence(3)]);
    }

    fn with_ready(number: u128, ready_places: usize, running: i64, ready: i64) -> Worker {
        let mut state = worker(number, 1);
        state.ready = ready_places;
        state.held.push(holding(running, needs(1, 0)));
        let mut waiting = holding(ready, needs(1, 0));
        waiting.assigned = true;
        state.held.push(waiting);
        state
    }

    #[test]
    fn a_ready_job_gives_way_to_a_better_one() {
        let mut placement = Placement::new(vec![with_ready(1, 1, 1, 2)], at(0));
        let mut urgent = job(3, needs(1, 0));
        urgent.order = Order::new(5, JobId(3));
        assert!(matches!(placement.offer(&urgent), Placed::Reserved { .. }));
        assert_eq!(placement.finish(), [Fence(2)]);
        let mut later = Placement::new(vec![with_ready(1, 1, 1, 2)], at(0));
        later.offer(&job(3, needs(1, 0)));
        assert_eq!(later.finish(), []);
    }

    #[test]
    fn a_ready_job_moves_to_free_room_before_later_ones_take_it() {
        let mut placement = Placement::new(vec![with_ready(1, 1, 1, 2), worker(2, 1)], at(0));
        // The free room is kept for job 2, and job 3 becomes the ready one.
        assert_eq!(placement.offer(&job(3, needs(1, 0))), to(1));
        assert_eq!(placement.finish(), [Fence(2)]);
    }

    #[test]
    fn a_ready_job_does_not_stay_behind_a_long_one_or_at_a_paused_worker() {
        let mut other = worker(2, 1);
        other.held.push(holding(9, needs(1, 0)));
        let stuck = Placement::new(vec![with_ready(1, 0, 1, 2), other.clone()], at(0));
        assert_eq!(stuck.finish(), [Fence(2)]);
        assert_eq!(
            Placement::new(vec![with_ready(1, 1, 1, 2), other], at(0)).finish(),
            []
        );
        assert_eq!(
            Placement::new(vec![with_ready(1, 0, 1, 2)], at(0)).finish(),
            []
        );
        let mut paused = with_ready(1, 1, 1, 2);
        paused.accepts = false;
        assert_eq!(Placement::new(vec![paused], at(0)).finish(), [Fence(2)]);
    }

    #[test]
    fn a_job_started_by_hand_ignores_slots_and_pauses_but_not_gpus() {
        let mut paused = gpu_worker(1, 1, 1);
        paused.accepts = false;
        paused.held.push(holding(1, needs(1, 0)));
        let mut placement = Placement::new(vec![paused], at(0));
        assert_eq!(
            placement.place_now(id(1), &needs(1, 1)),
            Some(vec!["gpu0".to_owned()])
        );
        assert_eq!(placement.place_now(id(1), &needs(1, 1)), None);
        assert_eq!(placement.place_now(id(2), &needs(1, 0)), None);
    }

    #[test]
    fn a_job_goes_where_its_checkpoint_is() {
        let mut bound = job(1, needs(1, 0));
        bound.checkpoint_on = Some(id(2));
        let mut placement = Placement::new(vec![worker(1, 4), worker(2, 1)], at(0));
        assert_eq!(placement.offer(&bound), to(2));
        let mut away = Placement::new(vec![worker(1, 4)], at(0));
        assert_eq!(away.offer(&bound), Placed::Impossible);
    }

    proptest! {
        #[test]
        fn capacity_is_never_oversold_and_order_is_kept_among_equals(
            sizes in prop::collection::vec((1..5i32, 0..3usize, 0..4usize), 1..5),
            jobs in prop::collection::vec((1..5i32, 0..3i32, prop::option::of(1..100i64)), 0..40),
        ) {
            let workers: Vec<Worker> = sizes
                .iter()
                .enumerate()
                .map(|(index, (slots, gpus, ready))| Worker { ready: *ready, ..gpu_worker(index as u128 + 1, *slots, *gpus) })
                .collect();
            let mut placement = Placement::new(workers.clone(), at(0));
            let mut taken = vec![(0, Vec::<String>::new(), 0); workers.len()];
            let mut plain_waits = false;
            for (number, (slots, gpus, limit)) in jobs.into_iter().enumerate() {
                let mut candidate = job(number as i64 + 1, needs(slots, gpus));
                candidate.time_limit = limit.map(TimeDelta::seconds);
                let plain = candidate.demand == Demand::default() && limit.is_none();
                match placement.offer(&candidate) {
                    Placed::Assign { worker, gpus: given } => {
                        prop_assert!(!(plain && plain_waits), "a later equal overtook");
                        let index = workers.iter().position(|w| w.id == worker).unwrap();
                        let (used, names, ready) = &mut taken[index];
                        prop_assert_eq!(given.len() as i32, gpus);
                        for gpu in given {
                            prop_assert!(!names.contains(&gpu), "a GPU was given twice");
                            names.push(gpu);
                        }
                        if *used + slots > workers[index].slots {
                            *ready += 1;
                        } else {
                            *used += slots;
                        }
                        prop_assert!(*ready <= workers[index].ready);
                    }
                    Placed::Reserved { .. } | Placed::Behind => plain_waits |= plain,
                    Placed::Impossible => {
                        prop_assert!(workers.iter().all(|w| w.slots < slots || (w.gpus.len() as i32) < gpus));
                    }
                }
            }
            prop_assert_eq!(placement.finish(), []);
        }
    }
}
