//! Workers as people read them. Pure.

use qctl_proto::v1;
use v1::gpu_watch::State as Driver;
use v1::worker::State;

use super::table::{Cell, Column, Paint, Table};
use super::{View, document, job, text, time};

/// The colour of a worker's state.
pub fn paint(state: State) -> Paint {
    match state {
        State::Online => Paint::Green,
        State::Paused | State::Draining | State::Reconnecting => Paint::Yellow,
        State::Unreachable => Paint::Red,
        State::Offline | State::Unspecified => Paint::Dim,
    }
}

/// A table of workers, each followed by a line for everything it runs.
pub fn list(workers: &[v1::Worker], view: &View) -> String {
    let mut table = Table::new(&[
        Column::left("WORKER").shrinking(10),
        Column::left("STATE"),
        Column::right("SLOTS"),
        Column::left("GPUS").shrinking(8),
        Column::right("LOAD"),
        Column::left("MEMORY"),
        Column::left("SEEN"),
        Column::right("TODAY"),
        Column::right("MEAN"),
        Column::left("LAST JOB"),
    ]);
    for worker in workers {
        let seen = time::instant(worker.last_seen.as_ref())
            .map(|at| time::ago(at, view.now, view.zone))
            .unwrap_or_default();
        let memory = match (worker.memory_used_bytes, worker.memory_bytes) {
            (_, 0) => String::new(),
            (Some(used), all) => format!("{} of {}", text::bytes(used), text::bytes(all)),
            (None, all) => text::bytes(all),
        };
        let last = match (
            worker.last_job_id,
            time::instant(worker.last_ended_at.as_ref()),
        ) {
            (0, _) => String::new(),
            (id, Some(at)) => format!("{id}, {}", time::ago(at, view.now, view.zone)),
            (id, None) => id.to_string(),
        };
        table.row(vec![
            Cell::from(&worker.name),
            Cell::painted(
                document::worker_state(worker.state()),
                paint(worker.state()),
            ),
            format!("{}/{}", worker.slots_taken, worker.slots).into(),
            gpus(worker).into(),
            worker
                .load
                .map(|load| format!("{load:.1}"))
                .unwrap_or_default()
                .into(),
            memory.into(),
            Cell::painted(seen, Paint::Dim),
            worker.ended_today.to_string().into(),
            time::span(worker.mean_duration.as_ref())
                .map(time::duration)
                .unwrap_or_default()
                .into(),
            last.into(),
        ]);
    }
    let mut out = table.render(view);
    let trouble = gpu_trouble(workers, view);
    if !trouble.is_empty() {
        out.push('\n');
        out.push_str(&trouble);
    }
    let running = running(workers, view);
    if !running.is_empty() {
        out.push('\n');
        out.push_str(&running);
    }
    out
}

/// GPUs in short: `2 × NVIDIA H200`. Without any, why there are none, as far as is known.
fn gpus(worker: &v1::Worker) -> String {
    if worker.gpus.is_empty() {
        let driver = worker.gpu_watch.as_ref().map(v1::GpuWatch::state);
        let word = match driver {
            Some(Driver::Absent) => "no driver",
            Some(Driver::Hung) => "driver hangs",
            Some(Driver::Failed) => "driver fails",
            Some(Driver::Read) => "none",
            Some(Driver::Unspecified) | None => "",
        };
        return word.to_owned();
    }
    let mut names: Vec<(&str, usize)> = Vec::new();
    for gpu in &worker.gpus {
        match names.iter_mut().find(|(name, _)| *name == gpu.name) {
            Some((_, count)) => *count += 1,
            None => names.push((&gpu.name, 1)),
        }
    }
    let names: Vec<String> = names
        .into_iter()
        .map(|(name, count)| format!("{count} × {name}"))
        .collect();
    names.join(", ")
}

/// A line for each GPU that does not work and each driver that cannot be asked; empty when all is well.
fn gpu_trouble(workers: &[v1::Worker], view: &View) -> String {
    let mut out = String::new();
    for worker in workers {
        let driver = worker.gpu_watch.as_ref().map(v1::GpuWatch::state);
        let said = match driver {
            Some(Driver::Hung) => Some("the GPU driver does not answer".to_owned()),
            Some(Driver::Failed) => worker
                .gpu_watch
                .as_ref()
                .map(|watch| format!("the GPU driver cannot be asked: {}", watch.message)),
            _ => None,
        };
        let faulty = worker.gpus.iter().filter_map(|gpu| {
            let fault = gpu.fault.as_ref()?;
            let since = time::instant(gpu.faulty_since.as_ref())
                .map(|at| format!(", since {}", time::clock(at, view.now, view.zone)))
                .unwrap_or_default();
            Some(format!(
                "{} {} gets no job{since}: {}",
                gpu.name, gpu.uuid, fault.message
            ))
        });
        for line in said.into_iter().chain(faulty) {
            out.push_str(&text::printable(&format!("{}: {line}", worker.name)));
            out.push('\n');
        }
    }
    out
}

/// A table of what workers run at present; empty when they run nothing.
pub fn running(workers: &[v1::Worker], view: &View) -> String {
    let mut table = Table::new(&[
        Column::right("RUNNING"),
        Column::left("NAME").shrinking(12).plain_at_most(40),
        Column::left("WORKER").shrinking(8),
        Column::right("TIME"),
        Column::left("PROGRESS").shrinking(16),
    ]);
    let mut any = false;
    for worker in workers {
        for running in &worker.running {
            any = true;
            let time = time::instant(running.started_at.as_ref())
                .and_then(|at| (view.now - at).to_std().ok())
                .map(time::duration)
                .unwrap_or_default();
            table.row(vec![
                format!("{}.{}", running.job_id, running.attempt).into(),
                Cell::from(&running.name),
                Cell::from(&worker.name),
                time.into(),
                running
                    .progress
                    .as_ref()
                    .map(job::progress)
                    .unwrap_or_default()
                    .into(),
            ]);
        }
    }
    if any {
        table.render(view)
    } else {
        String::new()
    }
}
