//! What jobs and machines use, as people read it. Pure.

use qctl_proto::v1;
use serde::Serialize;

use super::table::{Paint, facts};
use super::{View, document, text};

/// Points of a line of blocks.
pub const POINTS: i32 = 40;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What an attempt used, as a document.
#[derive(Debug, Serialize)]
pub struct Measures {
    /// The latest figures; absent unless it runs.
    latest: Option<Point>,
    /// The highest figures of the whole time.
    most: Option<Point>,
    /// Oldest first.
    points: Vec<Point>,
}

#[derive(Debug, Serialize)]
struct Point {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    cpus: Option<f64>,
    resident: i64,
    anonymous: Option<i64>,
    read_rate: Option<f64>,
    write_rate: Option<f64>,
    processes: i32,
    threads: i32,
    zombies: i32,
    uninterruptible: i32,
    gpu_busy: Option<f64>,
    gpu_memory: Option<i64>,
}

impl From<&v1::AttemptMeasures> for Point {
    fn from(used: &v1::AttemptMeasures) -> Self {
        Self {
            time: document::moment(used.time.as_ref()),
            cpus: used.cpus,
            resident: used.resident_bytes,
            anonymous: used.anonymous_bytes,
            read_rate: used.read_rate,
            write_rate: used.write_rate,
            processes: used.processes,
            threads: used.threads,
            zombies: used.zombies,
            uninterruptible: used.uninterruptible,
            gpu_busy: used.gpu_busy,
            gpu_memory: used.gpu_memory_bytes,
        }
    }
}

impl From<&v1::ReadAttemptMeasuresResponse> for Measures {
    fn from(history: &v1::ReadAttemptMeasuresResponse) -> Self {
        Self {
            latest: history.latest.as_ref().map(Point::from),
            most: history.most.as_ref().map(Point::from),
            points: history.points.iter().map(Point::from).collect(),
        }
    }
}

/// A line for each measure of an attempt: how it went, what it is now, and what it was at most.
/// Empty when nothing was measured. Without a terminal there are no blocks.
pub fn attempt(history: &v1::ReadAttemptMeasuresResponse, view: &View) -> String {
    let Some(most) = &history.most else {
        return String::new();
    };
    let latest = history.latest.as_ref();
    let line = |blocks: String, now: Option<String>, most: String| {
        let words = match now {
            Some(now) if now == most => now,
            Some(now) => format!("{now}, at most {most}"),
            None => format!("at most {most}"),
        };
        match blocks.as_str() {
            "" => words,
            blocks => format!("{}  {words}", Paint::Blue.on(blocks, view.colour)),
        }
    };
    let blocks = |value: fn(&v1::AttemptMeasures) -> Option<f64>| {
        if view.width.is_none() {
            return String::new();
        }
        let values: Vec<_> = history.points.iter().map(value).collect();
        sparkline(&values, None)
    };
    let cpu = most.cpus.map(|most| {
        line(
            blocks(|used| used.cpus),
            latest.and_then(|used| used.cpus).map(processors),
            processors(most),
        )
    });
    let memory = line(
        blocks(|used| Some(used.resident_bytes as f64)),
        latest.map(|used| text::bytes(used.resident_bytes)),
        text::bytes(most.resident_bytes),
    );
    let disk = most.read_rate.zip(most.write_rate).map(|(read, write)| {
        line(
            blocks(|used| Some(used.read_rate? + used.write_rate?)),
            latest.and_then(|used| Some(rates(used.read_rate?, used.write_rate?))),
            rates(read, write),
        )
    });
    let gpu = most.gpu_busy.map(|most| {
        line(
            blocks(|used| used.gpu_busy),
            latest.and_then(|used| used.gpu_busy).map(percent),
            percent(most),
        )
    });
    let gpu_memory = most.gpu_memory_bytes.map(|most| {
        line(
            blocks(|used| used.gpu_memory_bytes.map(|bytes| bytes as f64)),
            latest
                .and_then(|used| used.gpu_memory_bytes)
                .map(text::bytes),
            text::bytes(most),
        )
    });
    let processes = latest.map(|used| {
        let mut words = text::counted(used.processes.into(), "process");
        if used.processes != 1 {
            words = format!("{} processes", used.processes);
        }
        words.push_str(&format!(
            ", {}",
            text::counted(used.threads.into(), "thread")
        ));
        if used.uninterruptible > 0 {
            words.push_str(&format!(", {} stuck in the kernel", used.uninterruptible));
        }
        if used.zombies > 0 {
            words.push_str(&format!(", {} ended and not waited for", used.zombies));
        }
        words
    });
    facts(
        &[
            ("Processors", cpu.unwrap_or_default()),
            ("Memory", memory),
            ("Disk", disk.unwrap_or_default()),
            ("GPU", gpu.unwrap_or_default()),
            ("GPU memory", gpu_memory.unwrap_or_default()),
            ("Processes", processes.unwrap_or_default()),
        ],
        view,
    )
}

/// What a machine uses, in one line; empty when nothing was measured.
pub fn machine(history: &v1::ReadMachineMeasuresResponse, view: &View) -> String {
    let Some(latest) = &history.latest else {
        return String::new();
    };
    let blocks = |value: fn(&v1::MachineMeasures) -> Option<f64>| {
        if view.width.is_none() {
            return String::new();
        }
        let values: Vec<_> = history.points.iter().map(value).collect();
        let line = sparkline(&values, Some(1.0));
        format!("{} ", Paint::Blue.on(&line, view.colour))
    };
    let mut parts = Vec::new();
    if let Some(busy) = latest.busy {
        parts.push(format!(
            "processors {}{}",
            blocks(|used| used.busy),
            percent(busy)
        ));
    }
    if let Some((free, all)) = latest.memory_available_bytes.zip(latest.memory_total_bytes) {
        let used = |used: &v1::MachineMeasures| {
            let (free, all) = used.memory_available_bytes.zip(used.memory_total_bytes)?;
            Some(1.0 - free as f64 / all.max(1) as f64)
        };
        parts.push(format!(
            "memory {}{} free of {}",
            blocks(used),
            text::bytes(free),
            text::bytes(all)
        ));
    }
    if let Some(swap) = latest.swap_used_bytes.filter(|swap| *swap > 0) {
        parts.push(format!("{} swapped out", text::bytes(swap)));
    }
    if let Some((free, all)) = latest.disk_free_bytes.zip(latest.disk_total_bytes) {
        parts.push(format!(
            "disk {} free of {}",
            text::bytes(free),
            text::bytes(all)
        ));
    }
    let gpus = latest.gpus.as_ref().map_or(&[][..], |watch| &watch.gpus);
    for gpu in gpus {
        let busy = gpu.busy.map(percent);
        let memory = gpu.memory_used_bytes.map(text::bytes);
        let heat = gpu
            .temperature_celsius
            .map(|degrees| format!("{degrees} °C"));
        let told: Vec<_> = [busy, memory, heat].into_iter().flatten().collect();
        parts.push(format!("GPU {}", told.join(" ")));
    }
    parts.join(", ")
}

/// A block for each value, as high as its share of `top`, or of the highest; a gap where nothing was
/// measured.
fn sparkline(values: &[Option<f64>], top: Option<f64>) -> String {
    let highest = values.iter().flatten().copied().fold(0.0, f64::max);
    let top = top.unwrap_or(highest);
    values
        .iter()
        .map(|value| match value {
            None => ' ',
            Some(value) if top > 0.0 => {
                let step = (value / top * 7.0).round().clamp(0.0, 7.0);
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                BLOCKS[step as usize]
            }
            Some(_) => BLOCKS[0],
        })
        .collect()
}

fn processors(busy: f64) -> String {
    format!("{busy:.1} busy")
}

fn rates(read: f64, write: f64) -> String {
    #[allow(clippy::cast_possible_truncation)]
    let bytes = |rate: f64| text::bytes(rate as i64);
    format!("{}/s read, {}/s written", bytes(read), bytes(write))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_their_values() {
        let values = [Some(0.0), Some(1.0), None, Some(2.0), Some(4.0)];
        assert_eq!(sparkline(&values, None), "▁▃ ▅█");
        assert_eq!(sparkline(&[Some(0.0)], None), "▁");
        assert_eq!(sparkline(&[Some(0.5), Some(9.0)], Some(1.0)), "▅█");
        assert_eq!(sparkline(&[], None), "");
    }
}
