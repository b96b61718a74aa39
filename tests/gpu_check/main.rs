//! Checks what only a machine with a GPU can show: see `scripts/gpu-check`.

#[path = "../harness/mod.rs"]
#[allow(dead_code)]
mod harness;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use harness::Installation;
use serde_json::Value;

/// Longest wait for a driver that has to wake its GPUs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far two looks at the same card may differ: the programs do not look at the same moment.
const TOTAL_SHARE: f64 = 0.01;
const USED_BYTES: f64 = 1024.0 * 1024.0 * 1024.0;
const DEGREES: f64 = 10.0;

const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// What a check finds; an error says what is wrong.
type Found = Result<String, String>;

fn main() -> ExitCode {
    let mut qctl = Installation::prepare();
    // A stand-in for the driver's library, to try this program where there is no GPU.
    for name in ["QCTL_NVML_LIBRARY", "QCTL_NVML_STUB"] {
        if let Ok(value) = std::env::var(name) {
            qctl = qctl.env(name, value);
        }
    }
    let look = match looks(&qctl, 1) {
        Ok(looks) => looks.into_iter().next().unwrap_or_default(),
        Err(error) => {
            println!("failed  the driver: {error}");
            return ExitCode::FAILURE;
        }
    };
    if look["absent"] == Value::Bool(true) {
        println!("This machine has no NVIDIA driver, so there is nothing to check.");
        return ExitCode::SUCCESS;
    }
    let listed = match listed(&qctl) {
        Ok(listed) if listed.is_empty() => {
            println!(
                "The NVIDIA driver of this machine lists no GPU, so there is nothing to check."
            );
            return ExitCode::SUCCESS;
        }
        Ok(listed) => listed,
        Err(error) => {
            println!("failed  the list of GPUs: {error}");
            return ExitCode::FAILURE;
        }
    };
    let checks: [(&str, &dyn Fn() -> Found); 5] = [
        ("the list of GPUs", &|| names(&listed)),
        ("a probe of each", &|| probe(&qctl, &listed)),
        ("what is watched", &|| watch(&qctl, &listed)),
        ("the same by nvidia-smi", &|| nvidia_smi(&qctl)),
        ("a job on a GPU", &|| job(&qctl, &listed)),
    ];
    let mut failed = 0;
    for (name, check) in checks {
        // The harness asserts; what it says is on standard error.
        let found = catch_unwind(AssertUnwindSafe(check));
        match found.unwrap_or_else(|_| Err("see above".to_owned())) {
            Ok(found) => println!("ok      {name}: {found}"),
            Err(error) => {
                failed += 1;
                println!("failed  {name}: {error}");
            }
        }
    }
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// A part of the worker that asks the driver.
fn part(qctl: &Installation, name: &str) -> Command {
    let mut command = qctl.command("qctl-worker");
    command.arg(name);
    if let Ok(library) = std::env::var("QCTL_NVML_LIBRARY") {
        command.args(["--library", &library]);
    }
    command
}

fn answer(command: Command) -> Result<Value, String> {
    let said = harness::run(command).ok();
    serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn uuids(gpus: &[Value]) -> Vec<&str> {
    let mut uuids: Vec<&str> = gpus.iter().filter_map(|gpu| gpu["uuid"].as_str()).collect();
    uuids.sort_unstable();
    uuids
}

fn listed(qctl: &Installation) -> Result<Vec<Value>, String> {
    Ok(rows(&answer(part(qctl, "gpus"))?).to_vec())
}

/// So many looks of the process that watches.
fn looks(qctl: &Installation, count: usize) -> Result<Vec<Value>, String> {
    let mut watcher = part(qctl, "watch-gpus")
        .args(["--every", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let lines = watcher.stdout.take().map(BufReader::new);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = lines.into_iter().flat_map(BufRead::lines);
        lines.map_while(Result::ok).for_each(|line| {
            // Nobody listens once enough was seen.
            let _ = tell.send(line);
        });
    });
    let look = |_| {
        let line = told.recv_timeout(PATIENCE);
        let line =
            line.map_err(|error| format!("no look within {} s: {error}", PATIENCE.as_secs()))?;
        serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))
    };
    let looks = (0..count).map(look).collect();
    // It may have ended by itself.
    let _ = watcher.kill();
    let _ = watcher.wait();
    looks
}

fn names(listed: &[Value]) -> Found {
    let name = |gpu: &Value| match (gpu["name"].as_str(), gpu["memory_bytes"].as_f64()) {
        (Some(name), Some(bytes)) if !name.is_empty() => {
            Ok(format!("{name}, {:.0} MiB", bytes / MEBIBYTE))
        }
        _ => Err(format!("a GPU without name or memory: {gpu}")),
    };
    let names: Result<Vec<String>, String> = listed.iter().map(name).collect();
    Ok(names?.join("; "))
}

fn probe(qctl: &Installation, listed: &[Value]) -> Found {
    const NOBODY: &str = "GPU-00000000-0000-4000-8000-000000000000";
    let mut command = part(qctl, "probe-gpus");
    for uuid in uuids(listed).into_iter().chain([NOBODY]) {
        command.args(["--gpu", uuid]);
    }
    let found = answer(command)?;
    for gpu in rows(&found) {
        let is_well = gpu["lost"] != Value::Bool(true) && gpu["unfit"].is_null();
        if is_well == (gpu["uuid"] == NOBODY) {
            return Err(gpu.to_string());
        }
    }
    match rows(&found).len() == listed.len() + 1 {
        true => Ok("all pass, and one that does not exist does not".to_owned()),
        false => Err(format!("not all were probed: {found}")),
    }
}

fn watch(qctl: &Installation, listed: &[Value]) -> Found {
    let looks = looks(qctl, 2)?;
    for look in &looks {
        let gpus = rows(&look["gpus"]);
        if uuids(gpus) != uuids(listed) {
            return Err(format!("other GPUs than are listed: {look}"));
        }
        for gpu in gpus {
            let figure = |name: &str| gpu[name].as_f64();
            let used = figure("memory_used").zip(figure("memory_total"));
            let busy = figure("busy").unwrap_or(0.0);
            let is_odd = used.is_some_and(|(used, total)| used > total);
            if is_odd || !(0.0..=1.0).contains(&busy) || gpu["lost"] == Value::Bool(true) {
                return Err(gpu.to_string());
            }
        }
    }
    let told = [
        "memory_used",
        "busy",
        "temperature",
        "power",
        "uncorrected",
        "processes",
    ];
    let first = &looks[0]["gpus"][0];
    let told: Vec<&str> = told
        .into_iter()
        .filter(|name| !first[name].is_null())
        .collect();
    Ok(format!("the first GPU tells {}", told.join(", ")))
}

/// Compares with NVIDIA's own program, where it is.
fn nvidia_smi(qctl: &Installation) -> Found {
    let asked = Command::new("nvidia-smi")
        .arg("--query-gpu=uuid,memory.total,memory.used,temperature.gpu")
        .arg("--format=csv,noheader,nounits")
        .output();
    let Ok(asked) = asked else {
        return Ok("it is not installed here, so nothing is compared".to_owned());
    };
    if !asked.status.success() {
        let said = String::from_utf8_lossy(&asked.stdout);
        return Err(format!("it fails: {}", said.trim()));
    }
    let look = looks(qctl, 1)?;
    let ours: BTreeMap<&str, &Value> = rows(&look[0]["gpus"])
        .iter()
        .filter_map(|gpu| Some((gpu["uuid"].as_str()?, gpu)))
        .collect();
    let text = String::from_utf8_lossy(&asked.stdout);
    let theirs: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split(',').map(str::trim).collect())
        .collect();
    if theirs.len() != ours.len() {
        return Err(format!("it lists {} GPUs, we {}", theirs.len(), ours.len()));
    }
    for row in &theirs {
        let gpu = ours.get(row[0]).ok_or(format!("{} is not ours", row[0]))?;
        let total = row.get(1).and_then(|text| text.parse::<f64>().ok());
        let total = total.map(|total| total * MEBIBYTE);
        let used = row.get(2).and_then(|text| text.parse::<f64>().ok());
        let used = used.map(|used| used * MEBIBYTE);
        let degrees = row.get(3).and_then(|text| text.parse::<f64>().ok());
        for (name, theirs, within) in [
            ("memory_total", total, total.unwrap_or(0.0) * TOTAL_SHARE),
            ("memory_used", used, USED_BYTES),
            ("temperature", degrees, DEGREES),
        ] {
            // What one of the two does not tell cannot be compared.
            let both = theirs.zip(gpu[name].as_f64());
            if let Some((theirs, ours)) = both.filter(|(a, b)| (a - b).abs() > within) {
                return Err(format!("{name} of {}: it says {theirs}, we {ours}", row[0]));
            }
        }
    }
    Ok(format!("{} GPUs agree", theirs.len()))
}

/// One job with a GPU, by a queue of its own.
fn job(qctl: &Installation, listed: &[Value]) -> Found {
    qctl.up(&[]).ok();
    qctl.until("the worker has all GPUs", || {
        let workers = qctl.json(&["workers"]);
        let worker = &workers["workers"][0];
        let has_all = uuids(rows(&worker["gpus"])) == uuids(listed);
        (has_all && worker["gpu_driver"] == "read").then_some(())
    });
    let id = qctl.submit(&["--gpus", "1", "--shell", "echo $CUDA_VISIBLE_DEVICES"]);
    let job = qctl.until_ended(id);
    let said = String::from_utf8_lossy(&qctl.raw_log(id)).trim().to_owned();
    if job["state"] != "succeeded" || !uuids(listed).contains(&said.as_str()) {
        return Err(format!("it saw `{said}`: {job:#}"));
    }
    Ok(format!("it saw {said}"))
}
