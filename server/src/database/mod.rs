//! Opens the database: the one that was named, or an embedded one; and leads it, one coordinator at
//! a time.
//!
//! [`open`] connects and sees to it that the tables know of leases. [`Database::lead`] waits until
//! this coordinator leads and brings the tables up to date. [`Database::keep`] renews the lease.

mod contender;
pub mod embedded;
mod place;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::{self, Lease, leadership};
use contender::Contender;
pub use contender::{News, Standing};
use embedded::{Embedded, EmbeddedError};
pub use place::{Place, PlaceError};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Where the database keeps what was migrated; sqlx's own name.
const MIGRATIONS_TABLE: &str = "_sqlx_migrations";

/// How long to wait for a coordinator of version 0.1 that was just stopped to leave the database.
const SUCCESSION: Duration = Duration::from_secs(5);

/// Longest time that connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Postgres's code for a database that does not exist.
const NO_SUCH_DATABASE: &str = "3D000";

/// Which database, and how much of it.
#[derive(Clone)]
pub struct Settings {
    /// Where it is.
    pub source: Source,
    /// Most connections of the pool, beside the one that keeps the lease.
    pub connections: u32,
}

/// Where the database is.
#[derive(Clone)]
pub enum Source {
    /// A Postgres that somebody else runs, as `postgres://…`. May hold a password.
    Url(String),
    /// A private one.
    Embedded {
        /// Folder of the cluster.
        folder: PathBuf,
        /// Folder of `postgres` and `initdb`; none to look for it.
        programs: Option<PathBuf>,
    },
}

/// Why the database was not opened.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The address cannot be read. It is not repeated, because it may hold a password.
    #[error("DATABASE_URL is not an address such as postgres://user@host:5432/qctl")]
    Url {
        /// Why.
        source: sqlx::Error,
    },
    /// There is no embedded Postgres.
    #[error("the embedded Postgres cannot be used")]
    Embedded(#[from] EmbeddedError),
    /// Nobody answered, or we were not let in.
    #[error("cannot connect to the database at {place}")]
    Connect {
        /// Host and database, without the password.
        place: String,
        /// Why.
        source: sqlx::Error,
    },
    /// A coordinator of version 0.1 uses the database, which cannot have another one beside it.
    #[error(
        "a coordinator of an older version{} leads this database; stop it first",
        name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default()
    )]
    Led {
        /// What it calls itself, if it could be told.
        name: Option<String>,
    },
    /// The tables are newer than this program.
    #[error(
        "the database was changed by a newer qctl (migration {version}, unknown here); use that version or a newer one"
    )]
    Newer {
        /// The unknown migration.
        version: i64,
    },
    /// The tables could not be brought up to date.
    #[error("bringing the database's tables up to date failed")]
    Migrate {
        /// Why.
        source: MigrateError,
    },
    /// A statement failed.
    #[error("preparing the database failed")]
    Query {
        /// Why.
        source: sqlx::Error,
    },
}

/// An open database, which this coordinator leads or not.
pub struct Database {
    /// What it is, such as `PostgreSQL 15.18 (embedded)`.
    pub description: String,
    options: PgConnectOptions,
    connections: u32,
    contender: Contender,
    embedded: Option<Embedded>,
}

/// Opens the database. `url` is where clients reach this coordinator, and `place` the data folder
/// that it works with.
///
/// # Errors
/// When it cannot be reached, its tables are of a newer version, or a coordinator of version 0.1
/// leads it.
pub async fn open(settings: &Settings, url: &str, place: Place) -> Result<Database, DatabaseError> {
    let (embedded, options) = match &settings.source {
        Source::Url(url) => {
            let options =
                PgConnectOptions::from_str(url).map_err(|source| DatabaseError::Url { source })?;
            (None, options)
        }
        Source::Embedded { folder, programs } => {
            let embedded = Embedded::start(folder, programs.as_deref()).await?;
            let options = embedded.connect_options();
            (Some(embedded), options)
        }
    };
    let contender = Contender::new(&options, url, place);
    let options = options.application_name(contender.name());
    match prepare(&options, embedded.is_some()).await {
        Ok(version) => Ok(Database {
            description: format!(
                "PostgreSQL {version}{}",
                if embedded.is_some() {
                    " (embedded)"
                } else {
                    ""
                }
            ),
            options,
            connections: settings.connections,
            contender,
            embedded,
        }),
        Err(error) => {
            if let Some(embedded) = embedded {
                embedded.stop().await;
            }
            Err(error)
        }
    }
}

impl Database {
    /// Returns once this coordinator leads and the tables are up to date: with connections, and the
    /// lease that [`Database::keep`] renews. Tells meanwhile who leads.
    ///
    /// # Errors
    /// When the tables cannot be brought up to date, or are of a newer version by now.
    pub async fn lead(
        &mut self,
        standing: &watch::Sender<Standing>,
    ) -> Result<(PgPool, Lease), DatabaseError> {
        loop {
            let lease = self.contender.contend(standing).await;
            let migrated = tokio::select! {
                migrated = migrate(&self.options) => migrated,
                () = self.contender.keep(&lease, |_| {}) => {
                    tracing::warn!("the lease was lost while the tables were brought up to date");
                    continue;
                }
            };
            if let Err(error) = migrated {
                self.contender.release(&lease).await;
                return Err(error);
            }
            let pool = store::pool(self.options.clone(), self.connections);
            return Ok((pool, lease));
        }
    }

    /// Renews the lease, and returns when it is over: it could not be renewed in time, or another
    /// coordinator leads. Passes on what there is to hear of the database meanwhile.
    pub async fn keep(&mut self, lease: &Lease, hear: impl Fn(News)) {
        self.contender.keep(lease, hear).await;
    }

    /// Gives the lease back at an orderly stop.
    pub async fn release(&mut self, lease: &Lease) {
        self.contender.release(lease).await;
    }

    /// Stops the embedded Postgres, if it is one.
    pub async fn stop(self) {
        // The folder is ours until nothing works in it any more.
        let Self {
            contender,
            embedded,
            ..
        } = self;
        if let Some(embedded) = embedded {
            embedded.stop().await;
        }
        drop(contender);
    }
}

/// Sees to it that the database is there, with tables that know of leases and that this version can
/// read. Returns Postgres's version.
async fn prepare(options: &PgConnectOptions, create: bool) -> Result<String, DatabaseError> {
    let query = |source| DatabaseError::Query { source };
    let mut connection = match connect(options).await {
        Err(error) if create && is_missing_database(&error) => {
            create_database(options).await?;
            connect(options).await
        }
        connected => connected,
    }
    .map_err(|source| unreachable_at(options, source))?;
    let is_prepared = leadership::is_prepared(&mut connection)
        .await
        .map_err(query)?;
    if !is_prepared {
        keep_former_out(&mut connection).await?;
        run_migrations(&mut connection).await?;
    }
    refuse_newer(&mut connection).await?;
    let version = leadership::server_version(&mut connection)
        .await
        .map_err(query)?;
    // What was asked is answered; a hasty end of this connection does no harm.
    let _ = connection.close().await;
    Ok(version)
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    tokio::time::timeout(CONNECT_LIMIT, options.connect())
        .await
        .unwrap_or_else(|_| {
            let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
            Err(sqlx::Error::Io(late))
        })
}

/// Keeps coordinators of version 0.1 from leading while this connection lives, waiting a little for
/// one that was just stopped.
async fn keep_former_out(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    let query = |source| DatabaseError::Query { source };
    let deadline = Instant::now() + SUCCESSION;
    loop {
        if leadership::keep_former_out(connection)
            .await
            .map_err(query)?
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let name = leadership::former_leader(connection).await.map_err(query)?;
            return Err(DatabaseError::Led { name });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn migrate(options: &PgConnectOptions) -> Result<(), DatabaseError> {
    let mut connection = connect(options)
        .await
        .map_err(|source| unreachable_at(options, source))?;
    run_migrations(&mut connection).await?;
    let _ = connection.close().await;
    Ok(())
}

async fn run_migrations(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    MIGRATIONS
        .run_direct(None, connection, false)
        .await
        .map_err(|error| match error {
            MigrateError::VersionMissing(version) => DatabaseError::Newer { version },
            source => DatabaseError::Migrate { source },
        })
}

/// Also a coordinator that stands by must be able to read what it will lead.
async fn refuse_newer(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    let applied = connection
        .list_applied_migrations(MIGRATIONS_TABLE)
        .await
        .map_err(|source| DatabaseError::Migrate { source })?;
    match applied
        .iter()
        .find(|applied| !MIGRATIONS.version_exists(applied.version))
    {
        Some(newer) => Err(DatabaseError::Newer {
            version: newer.version,
        }),
        None => Ok(()),
    }
}

async fn create_database(options: &PgConnectOptions) -> Result<(), DatabaseError> {
    let mut connection = options
        .clone()
        .database("postgres")
        .connect()
        .await
        .map_err(|source| unreachable_at(options, source))?;
    leadership::create_database(&mut connection, embedded::DATABASE)
        .await
        .map_err(|source| DatabaseError::Query { source })?;
    // The database exists by now; a hasty end of this connection does no harm.
    let _ = connection.close().await;
    Ok(())
}

fn is_missing_database(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == NO_SUCH_DATABASE)
}

fn unreachable_at(options: &PgConnectOptions, source: sqlx::Error) -> DatabaseError {
    let host = options.get_socket().map_or_else(
        || format!("{}:{}", options.get_host(), options.get_port()),
        |socket| socket.display().to_string(),
    );
    DatabaseError::Connect {
        place: format!(
            "{host}, database {}",
            options.get_database().unwrap_or(options.get_username())
        ),
        source,
    }
}
