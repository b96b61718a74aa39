//! The invariants of ARCHITECTURE.md that are about the source itself, and the promises that
//! documents make about the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files of the repository below a folder, relative to its root, without what is built or hidden.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || ["target", "demo", "node_modules"].contains(&name.as_str())
            {
                continue;
            }
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(_) => found.push(path.strip_prefix(root()).unwrap().to_owned()),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut sources = files(folder);
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    sources
}

/// The shipped part of a source file: no comments, and nothing from its test module on. Files that
/// are test modules are named so.
fn shipped(path: &Path) -> Vec<(usize, String)> {
    let is_test = |part: &std::ffi::OsStr| {
        let name = Path::new(part).file_stem().unwrap_or(part);
        let name = name.to_string_lossy();
        name == "testing" || name == "tests" || name.ends_with("_tests")
    };
    if path.iter().any(is_test) {
        return Vec::new();
    }
    read(path)
        .lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or("").to_owned()))
        .collect()
}

/// Every shipped line of the files that contains one of the texts.
fn mentions(files: impl IntoIterator<Item = PathBuf>, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files {
        for (number, line) in shipped(&path) {
            if texts.iter().any(|text| line.contains(text)) {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    found
}

fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// Names of the crates that a manifest's sections ask for.
fn dependencies(manifest: &str, wanted: &[&str]) -> BTreeSet<String> {
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in read(manifest).lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name.to_owned();
        } else if wanted.contains(&section.as_str())
            && let Some((name, _)) = line.split_once(['.', '='])
        {
            found.insert(name.trim().to_owned());
        }
    }
    found
}

const ALL_SECTIONS: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

#[test]
fn crates_depend_in_one_direction() {
    let allowed: &[(&str, &[&str])] = &[
        ("Cargo.toml", &[]),
        ("checkpoint/Cargo.toml", &[]),
        ("server/core/Cargo.toml", &[]),
        ("worker/core/Cargo.toml", &[]),
        ("notify/Cargo.toml", &[]),
        (
            "server/Cargo.toml",
            &[
                "qctl-notify",
                "qctl-proto",
                "qctl-server-core",
                "qctl-simulation",
            ],
        ),
        (
            "worker/Cargo.toml",
            &[
                "qctl-checkpoint",
                "qctl-notify",
                "qctl-proto",
                "qctl-worker-core",
            ],
        ),
        (
            "cli/Cargo.toml",
            &["qctl-checkpoint", "qctl-notify", "qctl-proto"],
        ),
        (
            "tests/simulation/Cargo.toml",
            &["qctl-server-core", "qctl-worker-core"],
        ),
    ];
    for (manifest, allowed) in allowed {
        let ours: Vec<_> = dependencies(manifest, ALL_SECTIONS)
            .into_iter()
            .filter(|name| name.starts_with("qctl-") && !allowed.contains(&name.as_str()))
            .collect();
        assert_none(&format!("{manifest} must not depend on"), &ours);
    }
    // Its tests compare the store with the double.
    let shipped = dependencies("server/Cargo.toml", &["dependencies", "build-dependencies"]);
    assert!(!shipped.contains("qctl-simulation"));
}

#[test]
fn cores_depend_on_little() {
    // What computes, and nothing that acts.
    let computing = [
        "chrono",
        "crc32c",
        "memchr",
        "regex",
        "serde",
        "serde_json",
        "thiserror",
        "uuid",
    ];
    for core in ["server/core", "worker/core"] {
        let others: Vec<_> = dependencies(&format!("{core}/Cargo.toml"), &["dependencies"])
            .into_iter()
            .filter(|name| !computing.contains(&name.as_str()))
            .collect();
        assert_none(&format!("{core} must not depend on"), &others);
    }
}

#[test]
fn cores_do_no_io_and_read_no_clock() {
    let acting = [
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "std::thread",
        "std::io",
        "std::os",
        "std::sync",
        "SystemTime",
        "Instant::now",
        "Utc::now",
        "Local::now",
        "new_v4",
        "now_v7",
        "println!",
        "eprintln!",
        "tracing::",
        "async fn",
    ];
    let cores = ["server/core/src", "worker/core/src"];
    let found = mentions(cores.iter().flat_map(|core| sources(core)), &acting);
    // A value computed once and never again is no hidden input.
    let found: Vec<_> = found
        .into_iter()
        .filter(|line| !line.contains("LazyLock") && !line.contains("OnceLock"))
        .collect();
    assert_none(
        "a core decides; time and random numbers are arguments",
        &found,
    );
}

fn server_except(folders: &[&str]) -> Vec<PathBuf> {
    let mut paths = sources("server/src");
    paths.retain(|path| {
        !folders.iter().any(|folder| {
            path.starts_with(format!("server/src/{folder}"))
                || path == Path::new(&format!("server/src/{folder}.rs"))
        })
    });
    paths
}

#[test]
fn sql_stands_only_in_the_store() {
    let found = mentions(
        server_except(&["store", "database"]),
        &[
            "query!",
            "query_as!",
            "query_scalar!",
            "sqlx::query",
            "QueryBuilder",
            "sqlx::Executor",
        ],
    );
    assert_none("SQL stands only in server/src/store", &found);
    for other in ["worker/src", "cli/src", "server/core/src"] {
        assert_none(
            "only the coordinator knows the database",
            &mentions(sources(other), &["sqlx"]),
        );
    }
}

#[test]
fn the_database_driver_does_not_reach_the_faces() {
    let faces = ["grpc", "web"];
    let found = mentions(
        faces
            .iter()
            .flat_map(|folder| sources(&format!("server/src/{folder}"))),
        &["sqlx"],
    );
    assert_none("faces call use cases, not the database", &found);
    // A use case carries a transaction's connection from one function of the store to the next.
    let found: Vec<_> = mentions(sources("server/src/app"), &["sqlx"])
        .into_iter()
        .filter(|line| !line.ends_with("use sqlx::PgConnection;"))
        .collect();
    assert_none("use cases see StoreError, not the driver", &found);
}

#[test]
fn messages_of_the_contract_stand_only_at_the_edge() {
    let found = mentions(
        ["app", "store", "reconcilers", "database"]
            .iter()
            .flat_map(|folder| sources(&format!("server/src/{folder}"))),
        &["qctl_proto::v1", "v1::"],
    );
    assert_none(
        "messages are translated in grpc and web, and go no deeper",
        &found,
    );
}

#[test]
fn layers_of_the_coordinator_look_downwards() {
    let upwards: &[(&str, &[&str])] = &[
        (
            "store",
            &[
                "crate::app",
                "crate::grpc",
                "crate::web",
                "crate::reconcilers",
                "crate::sessions",
            ],
        ),
        (
            "database",
            &[
                "crate::app",
                "crate::grpc",
                "crate::web",
                "crate::reconcilers",
                "crate::sessions",
            ],
        ),
        (
            "sessions",
            &["crate::grpc", "crate::web", "crate::reconcilers"],
        ),
        (
            "app",
            &[
                "crate::grpc",
                "crate::web",
                "crate::reconcilers",
                "crate::notify",
            ],
        ),
        (
            "notify",
            &["crate::grpc", "crate::web", "crate::reconcilers"],
        ),
        ("reconcilers", &["crate::grpc", "crate::web"]),
        ("web", &["crate::grpc", "crate::store"]),
    ];
    for (folder, above) in upwards {
        let found = mentions(sources(&format!("server/src/{folder}")), above);
        assert_none(&format!("server/src/{folder} looks upwards"), &found);
    }
}

#[test]
fn the_shim_is_synchronous() {
    assert_none(
        "the shim runs without an async runtime",
        &mentions(sources("worker/src/shim"), &["tokio", "async fn", ".await"]),
    );
}

#[test]
fn no_file_is_named_for_nothing() {
    let banned = ["utils", "util", "common", "helpers", "manager", "imp"];
    let found: Vec<_> = files(".")
        .into_iter()
        .filter(|path| {
            path.iter().any(|part| {
                let name = Path::new(part).file_stem().unwrap_or(part);
                banned.contains(&name.to_string_lossy().as_ref())
            })
        })
        .map(|path| path.display().to_string())
        .collect();
    assert_none("a name says what is inside", &found);
}

#[test]
fn nothing_is_exported_wholesale() {
    let folders = ["proto", "server", "worker", "cli"];
    let found: Vec<_> = mentions(
        folders.iter().flat_map(|folder| sources(folder)),
        &["pub use", "pub(crate) use"],
    )
    .into_iter()
    .filter(|line| line.contains("::*"))
    .collect();
    assert_none("exports are named one by one", &found);
}

#[test]
fn every_message_service_and_field_of_the_contract_is_documented() {
    let mut bare = Vec::new();
    for path in files("proto/qctl/v1") {
        let text = read(&path);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for (index, line) in lines.iter().enumerate() {
            let declares = ["message ", "enum ", "service ", "rpc ", "oneof "]
                .iter()
                .any(|word| line.starts_with(word));
            let is_member = line.contains(" = ")
                && line.ends_with(';')
                && !["option ", "syntax ", "//", "reserved "]
                    .iter()
                    .any(|word| line.starts_with(word));
            let documented = index > 0 && lines[index - 1].starts_with("//");
            if (declares || is_member) && !documented {
                bare.push(format!("{}:{}: {line}", path.display(), index + 1));
            }
        }
    }
    assert_none("say what it means", &bare);
}

#[test]
fn every_reason_is_explained() {
    let text = read("docs/errors.md");
    let missing: Vec<_> = qctl_proto::error::Reason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .filter(|reason| !text.contains(&format!("\n### {reason}\n")))
        .map(str::to_owned)
        .collect();
    assert_none("docs/errors.md does not explain", &missing);
    let unknown: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|name| qctl_proto::error::Reason::parse(name).is_none())
        .map(str::to_owned)
        .collect();
    assert_none("docs/errors.md explains what does not exist", &unknown);
}

/// Words such as `NO_TOKEN` in string literals.
fn reason_words(text: &str) -> Vec<String> {
    text.split('"')
        .skip(1)
        .step_by(2)
        .filter(|word| word.len() > 3 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_reason_of_the_command_line_itself_is_explained() {
    let text = read("docs/errors.md");
    let mut words = BTreeSet::new();
    for path in sources("cli/src") {
        let lines: Vec<_> = shipped(&path).into_iter().map(|(_, line)| line).collect();
        let all = lines.join("\n");
        if path.ends_with("error.rs") {
            words.extend(reason_words(&all));
        }
        for call in all.split("Problem::new(").skip(1) {
            // The reason is the first argument.
            words.extend(reason_words(call.split(',').next().unwrap_or("")));
        }
    }
    assert!(words.contains("NO_TOKEN"), "{words:?}");
    let missing: Vec<_> = words
        .into_iter()
        .filter(|word| qctl_proto::error::Reason::parse(word).is_none())
        .filter(|word| !text.contains(&format!("\n| `{word}` |")))
        .collect();
    assert_none("docs/errors.md does not explain", &missing);
}

#[test]
fn every_exit_code_is_explained() {
    let text = read("docs/errors.md");
    let mut missing = Vec::new();
    let mut seen = 0;
    for line in read("cli/src/exit.rs").lines() {
        let Some(rest) = line.strip_prefix("pub const ") else {
            continue;
        };
        let code = rest
            .rsplit(" = ")
            .next()
            .and_then(|code| code.strip_suffix(';'))
            .unwrap();
        seen += 1;
        if !text.contains(&format!("\n| {code} |")) {
            missing.push(rest.to_owned());
        }
    }
    assert!(
        seen >= 8,
        "the codes are not where this test looks for them"
    );
    assert_none("docs/errors.md does not list", &missing);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for path in files(".") {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = read(&path);
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or("");
            let file = target.split('#').next().unwrap_or("");
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            let folder = root().join(path.parent().unwrap_or(Path::new("")));
            if !folder.join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert_none("a link leads nowhere", &broken);
}

#[test]
fn the_readme_shows_commands_that_exist() {
    let grammar = read("cli/src/args.rs");
    let known: BTreeSet<String> = grammar
        .lines()
        .skip_while(|line| !line.starts_with("pub enum Command"))
        .take_while(|line| *line != "}")
        .filter_map(|line| line.trim().split_once('('))
        .map(|(name, _)| name.to_lowercase())
        .filter(|name| name.chars().all(char::is_alphanumeric))
        .chain(["kill", "ls", "help"].map(str::to_owned))
        .collect();
    assert!(known.contains("submit"), "{known:?}");
    let mut unknown = Vec::new();
    for path in files(".") {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let mut in_block = false;
        for line in read(&path).lines() {
            if line.starts_with("```") {
                in_block = !in_block;
            }
            let line = line.trim().trim_start_matches("$ ");
            let Some(rest) = line.strip_prefix("qctl ").filter(|_| in_block) else {
                continue;
            };
            let word = rest
                .split_whitespace()
                .find(|word| !word.starts_with('-'))
                .unwrap_or("help");
            let is_word = word.bytes().all(|byte| byte.is_ascii_lowercase());
            if is_word && !known.contains(word) {
                unknown.push(format!("{}: qctl {word}", path.display()));
            }
        }
    }
    assert_none("no such command", &unknown);
}

#[test]
fn every_fault_names_a_test_that_exists() {
    let text = read("docs/faults.md");
    let mut wrong = Vec::new();
    for name in text.split('`').filter(|part| part.contains(".rs::")) {
        let exists = name.split_once("::").is_some_and(|(path, test)| {
            std::fs::read_to_string(root().join(path))
                .is_ok_and(|source| source.contains(&format!("fn {test}(")))
        });
        if !exists {
            wrong.push(name.to_owned());
        }
    }
    assert_none("docs/faults.md names tests that are not there", &wrong);
    let missing: Vec<_> = (1..=40)
        .map(|number| format!("| F{number} |"))
        .filter(|row| !text.contains(row.as_str()))
        .collect();
    assert_none("docs/faults.md lacks the rows", &missing);
}
