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
mod gate;
mod grpc;
mod notify;
mod reconcilers;
mod serve;
pub mod sessions;
pub mod store;
mod telemetry;
mod web;

use std::convert::Infallible;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Parser;
use qctl_proto::daemon;
use sqlx::PgPool;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use app::links::Links;
use app::{About, App, Clock, Parts};
use auth::{Doorkeeper, Origins, PageDoor, PageKey, SecretError, Tokens};
use config::{Args, Config};
use database::{Database, DatabaseError, Place, PlaceError, Standing};
use gate::Gate;
use notify::Notifier;
use serve::{Announcement, Listener, ServeError};
use store::{Lease, Store};

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
    /// One of its tasks met a bug; it begins anew from what is in the database.
    #[error("a task of the coordinator panicked")]
    Fault,
    /// Another coordinator has the data folder.
    #[error("the coordinator has no data folder")]
    Place(#[from] PlaceError),
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
    // A connection is a file, and the usual limit is 1,024.
    daemon::raise_open_files();
    qctl_notify::panics::tell(
        "qctl-server",
        notify::host(),
        qctl_notify::outbox::Outbox::of(config.home.data_dir()),
    );
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
/// ones for a while, the tasks behind them, the lease, the database. It leads whenever no other
/// coordinator of the database does, and stands by otherwise.
///
/// # Errors
/// When the port, the database or a secret cannot be used.
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
    let place = Place::take(data)?;
    let notifier = Arc::new(Notifier::new(config.notify.clone(), data));
    let tokens = Arc::new(Tokens::open(&config.home.token_file())?);
    let key = PageKey::open(&data.join("page-key"))?;
    // Before the database, because a taken port is found at once.
    let listener =
        Listener::bind_as_before(config.listen, config.tls.as_ref(), &data.join("port")).await?;
    let local_url = listener.local_url();
    let origins = Arc::new(Origins::new(
        listener.address().ip(),
        config.public_url.as_deref(),
        config.tls.is_some(),
    ));
    let (gate, router) = Gate::new().await;
    let mut serving = tokio::spawn(listener.serve(router, shutdown.clone()));
    let url = config.public_url.as_deref().unwrap_or(&local_url);
    let mut database = tokio::select! {
        opened = database::open(&config.database, url, place) => opened?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let coordinator = Coordinator {
        public_url: url.to_owned(),
        announcement: Announcement::new(config.home.address_file(), &local_url, &shutdown),
        config,
        tokens,
        key,
        origins,
        gate,
        local_url,
        clock: Clock::system(),
        notifier: Arc::clone(&notifier),
    };
    let carrying = tokio::spawn(Arc::clone(&notifier).carry(coordinator.clock.clone()));
    let carrier = carrying.abort_handle();
    let ended = tokio::select! {
        ended = coordinator.lead_and_stand_by(&mut database, &mut serving, &shutdown) => ended,
        // It ends by a bug alone.
        _ = carrying => Err(RunError::Fault),
    };
    carrier.abort();
    database.stop().await;
    // A fault is told by itself.
    if matches!(ended, Ok(()) | Err(RunError::Fault)) {
        notifier.ended_in_order();
    }
    ended
}

/// What stays the same from term to term.
struct Coordinator {
    config: Config,
    tokens: Arc<Tokens>,
    key: PageKey,
    origins: Arc<Origins>,
    gate: Gate,
    local_url: String,
    public_url: String,
    clock: Clock,
    announcement: Announcement,
    notifier: Arc<Notifier>,
}

type Serving = JoinHandle<Result<(), ServeError>>;

impl Coordinator {
    /// Leads whenever it can, until the port is not served any more: that is the last to end.
    async fn lead_and_stand_by(
        &self,
        database: &mut Database,
        serving: &mut Serving,
        shutdown: &CancellationToken,
    ) -> Result<(), RunError> {
        let started_at = self.clock.now();
        let (standing, mut news) = watch::channel(Standing::Starting);
        loop {
            let led = async {
                tokio::select! {
                    led = database.lead(&standing) => led,
                    never = self.tell(&mut news) => match never {},
                }
            };
            let (pool, lease) = tokio::select! {
                led = led => led?,
                served = &mut *serving => return ended(served),
            };
            self.clock.take_over_wall();
            let stop = shutdown.child_token();
            let app = self
                .serve_term(&pool, &lease, started_at, database, &stop)
                .await?;
            let served = tokio::select! {
                served = &mut *serving => Some(served),
                () = database.keep(&lease, |news| app.heard_of_database(news)) => None,
                () = app.fault().cancelled() => None,
            };
            self.gate.close().await;
            stop.cancel();
            let stopped = async {
                app.stopped().await;
                pool.close().await;
            };
            if tokio::time::timeout(STOP_LIMIT, stopped).await.is_err() {
                tracing::warn!("some tasks had not ended after {STOP_LIMIT:?}");
            }
            if let Some(served) = served {
                database.release(&lease).await;
                return ended(served);
            }
            if app.fault().is_cancelled() {
                database.release(&lease).await;
                shutdown.cancel();
                let _ = serving.await;
                return Err(RunError::Fault);
            }
            tracing::error!(
                term = lease.term().0,
                "term {} is over, because the lease could not be renewed or another coordinator leads; \
                 every session is closed, and jobs go on",
                lease.term().0
            );
        }
    }

    /// Tells those who call who leads.
    async fn tell(&self, news: &mut watch::Receiver<Standing>) -> Infallible {
        loop {
            let standing = news.borrow_and_update().clone();
            if matches!(standing, Standing::Behind { .. })
                && let Err(error) = self.announcement.announce()
            {
                // Whoever stands by does no harm without it.
                tracing::warn!(error = &error as &dyn std::error::Error, "{error}");
            }
            self.gate.tell(standing);
            if news.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Makes the use cases of a term, and opens the port to them.
    async fn serve_term(
        &self,
        pool: &PgPool,
        lease: &Lease,
        started_at: DateTime<Utc>,
        database: &Database,
        stop: &CancellationToken,
    ) -> Result<Arc<App>, RunError> {
        let app = App::start(
            Parts {
                store: Store::new(pool.clone(), lease.clone()),
                clock: self.clock.clone(),
                links: Links::new(&self.public_url, self.key.as_str()),
                settings: self.config.settings.clone(),
                started_at,
                about: About {
                    database: database.description.clone(),
                    templates_file: self.config.home.config_file("templates.toml"),
                },
            },
            stop.clone(),
        );
        reconcilers::start(&app);
        notify::start(&self.notifier, &app);
        let door = Doorkeeper {
            app: Arc::clone(&app),
            tokens: Arc::clone(&self.tokens),
            origins: Arc::clone(&self.origins),
        };
        let calls = grpc::routes(&app)
            .into_axum_router()
            .reset_fallback()
            .layer(axum::middleware::from_fn_with_state(door, auth::admit));
        let pages = web::routes(
            &app,
            PageDoor {
                key: self.key.clone(),
                origins: Arc::clone(&self.origins),
            },
        );
        self.gate.open(calls.merge(pages), lease.clone()).await;
        let term = lease.term().0;
        tracing::info!(
            term,
            "coordinator on {}, {}, term {term}",
            self.local_url,
            database.description,
        );
        self.announcement.announce()?;
        Ok(app)
    }
}

/// How serving the port ended.
fn ended(served: Result<Result<(), ServeError>, JoinError>) -> Result<(), RunError> {
    match served {
        Ok(served) => Ok(served?),
        Err(source) => Err(ServeError::Task { source }.into()),
    }
}
