//! The coordinator: keeps the queue and the history in Postgres, talks to workers over sessions,
//! and answers users over gRPC and HTTP on one port.
//!
//! `grpc`, `web` and `reconcilers` call `app`; `app` decides with `qctl-server-core`, writes through
//! `store`, and acts on what was committed through `sessions` and `changes`.

mod accounts;
pub mod app;
pub mod auth;
pub mod config;
pub mod database;
mod grpc;
mod readiness;
mod reconcilers;
mod serve;
pub mod sessions;
pub mod store;
mod telemetry;
mod web;

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use qctl_server_core::Term;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use app::links::Links;
use app::{About, App, Clock, Parts};
use auth::{Doorkeeper, Origins, PageDoor, PageKey, SecretError, Tokens};
use config::{Args, Config};
use database::{DatabaseError, LeadershipLost};
use serve::{AddressFile, Listener, ServeError};
use store::Store;

/// Exit code of a coordinator that was told to do something it cannot.
const USAGE: u8 = 2;

/// How long the tasks behind the use cases may take to end, and the pool to close.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Why the coordinator ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its folder cannot be made.
    #[error("cannot make the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The port.
    #[error("the coordinator cannot serve")]
    Serve(#[from] ServeError),
    /// The database.
    #[error("the coordinator has no database")]
    Database(#[from] DatabaseError),
    /// The token or the key in links.
    #[error("the coordinator cannot tell who calls")]
    Secret(#[from] SecretError),
    /// Another coordinator took over.
    #[error("the coordinator lost its leadership")]
    Leadership(#[from] LeadershipLost),
}

/// The program. Exits with 0 after a stop that was asked for, 2 when the configuration is wrong,
/// and 1 when the coordinator cannot go on.
pub fn main() -> ExitCode {
    // Fails only when a provider is there already, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let config = match Config::load(&args) {
        Ok(config) => config,
        Err(error) => {
            report(&error);
            return ExitCode::from(USAGE);
        }
    };
    if args.print_config {
        print!("{config}");
        return ExitCode::SUCCESS;
    }
    // Two threads serve hundreds of calls a second, and each idle one costs memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(start(config)),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error with everything below it, once.
fn report(error: &(dyn std::error::Error + 'static)) {
    let mut line = format!("qctl-server: {error}");
    let mut below = error.source();
    while let Some(source) = below {
        line.push_str(&format!(": {}", source.to_string().trim_end()));
        below = source.source();
    }
    eprintln!("{line}");
}

async fn start(config: Config) -> anyhow::Result<()> {
    let telemetry = telemetry::start(&config.log, config.log_format)?;
    let shutdown = CancellationToken::new();
    let (terminate, interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::spawn(watch_signals(terminate, interrupt, shutdown.clone()));
    let ended = run(config, shutdown).await;
    telemetry.shut_down().await;
    Ok(ended?)
}

/// The first signal asks for an orderly stop, the second ends the program at once.
async fn watch_signals(mut terminate: Signal, mut interrupt: Signal, shutdown: CancellationToken) {
    for is_first in [true, false] {
        let number = tokio::select! {
            _ = terminate.recv() => 15,
            _ = interrupt.recv() => 2,
        };
        if is_first {
            tracing::info!("stopping; a second signal stops at once");
            shutdown.cancel();
        } else {
            std::process::exit(128 + number);
        }
    }
}

/// Runs a coordinator until `shutdown` is cancelled, then stops it in order: no new calls, open
/// ones for ten seconds, the tasks behind them, the database.
///
/// # Errors
/// When the port, the database or a secret cannot be used, or another coordinator took over.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let data = config.home.data_dir();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(|source| RunError::Folder {
            path: data.to_owned(),
            source,
        })?;
    let tokens = Arc::new(Tokens::open(&config.home.token_file())?);
    let key = PageKey::open(&data.join("page-key"))?;
    // Before the database, because a taken port is found at once.
    let listener = Listener::bind(config.listen, config.tls.as_ref()).await?;
    let mut database = tokio::select! {
        opened = database::open(&config.database) => opened?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let local_url = listener.local_url();
    let public_url = config.public_url.as_deref().unwrap_or(&local_url);
    let stop = shutdown.child_token();
    let app = App::start(
        Parts {
            store: Store::new(database.pool.clone()),
            clock: Clock::system(),
            links: Links::new(public_url, key.as_str()),
            settings: config.settings.clone(),
            term: Term(database.term),
            about: About {
                database: database.description.clone(),
                templates_file: config.home.config_file("templates.toml"),
            },
        },
        stop.clone(),
    );
    reconcilers::start(&app);
    let origins = Arc::new(Origins::new(
        listener.address().ip(),
        config.public_url.as_deref(),
        config.tls.is_some(),
    ));
    let door = Doorkeeper {
        app: Arc::clone(&app),
        tokens,
        origins: Arc::clone(&origins),
    };
    let calls = grpc::routes(&app)
        .into_axum_router()
        .reset_fallback()
        .layer(axum::middleware::from_fn_with_state(door, auth::admit));
    let pages = web::routes(&app, PageDoor { key, origins });
    let address_file = AddressFile::write(config.home.address_file(), &local_url)?;
    tracing::info!(
        term = database.term,
        "coordinator on {local_url}, {}, term {}",
        database.description,
        database.term
    );
    readiness::notify("READY=1");

    let withdrawing = tokio::spawn(withdraw(stop.clone(), address_file));
    let mut serving = std::pin::pin!(listener.serve(calls.merge(pages), stop.clone()));
    let ended = tokio::select! {
        served = &mut serving => served.map_err(RunError::from),
        lost = database.leadership.keep() => {
            stop.cancel();
            // That the leadership is lost says more than how serving ended.
            let _ = serving.await;
            Err(lost.into())
        }
    };
    stop.cancel();
    let stopped = async {
        app.stopped().await;
        // Only a panic keeps the address from being withdrawn, and that is told already.
        let _ = withdrawing.await;
        database.pool.close().await;
        database.leadership.release().await;
    };
    if tokio::time::timeout(STOP_LIMIT, stopped).await.is_err() {
        tracing::warn!("some tasks had not ended after {STOP_LIMIT:?}");
    }
    if let Some(embedded) = database.embedded {
        embedded.stop().await;
    }
    ended
}

/// Says that we stop as soon as we do: to the service manager, and to programs that would call.
async fn withdraw(stop: CancellationToken, address_file: AddressFile) {
    stop.cancelled().await;
    readiness::notify("STOPPING=1");
    drop(address_file);
}
