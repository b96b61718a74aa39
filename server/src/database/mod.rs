//! Opens the database: the one that was named, or an embedded one.
//!
//! Opening means: connect, become its only coordinator, bring its tables up to date, and begin a
//! term. [`Leadership::keep`] watches afterwards that we still are the only one.

pub mod embedded;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::time::Instant;

use crate::store::{leadership, session_settings};
use embedded::{Embedded, EmbeddedError};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// How long to wait for a coordinator that was just killed to leave the database.
const SUCCESSION: Duration = Duration::from_secs(5);

/// Pause between two looks at whether we still lead.
const WATCH: Duration = Duration::from_secs(5);

/// Postgres's code for a database that does not exist.
const NO_SUCH_DATABASE: &str = "3D000";

/// Which database, and how much of it.
#[derive(Clone)]
pub struct Settings {
    /// Where it is.
    pub source: Source,
    /// Most connections of the pool, beside the one that keeps the leadership.
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
    /// Another coordinator uses the database.
    #[error(
        "another coordinator{} leads this database; stop it, or give this one another database",
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

/// An open database that no other coordinator uses.
pub struct Database {
    /// Connections for everyone.
    pub pool: PgPool,
    /// Number of the term that began with opening.
    pub term: i64,
    /// What it is, such as `PostgreSQL 15.18 (embedded)`.
    pub description: String,
    /// Keeps other coordinators out.
    pub leadership: Leadership,
    /// The private Postgres, when it is one.
    pub embedded: Option<Embedded>,
}

/// Opens the database.
///
/// # Errors
/// When it cannot be reached, another coordinator leads it, or its tables cannot be brought up to
/// date.
pub async fn open(settings: &Settings) -> Result<Database, DatabaseError> {
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
    let opened = lead(options, settings.connections, embedded.is_some()).await;
    match opened {
        Ok((pool, term, version, leadership)) => Ok(Database {
            pool,
            term,
            description: format!(
                "PostgreSQL {version}{}",
                if embedded.is_some() {
                    " (embedded)"
                } else {
                    ""
                }
            ),
            leadership,
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

async fn lead(
    options: PgConnectOptions,
    connections: u32,
    create: bool,
) -> Result<(PgPool, i64, String, Leadership), DatabaseError> {
    let options = options.application_name(&own_name());
    let query = |source| DatabaseError::Query { source };
    let mut connection = match options.connect().await {
        Err(error) if create && is_missing_database(&error) => {
            create_database(&options).await?;
            options.connect().await
        }
        connected => connected,
    }
    .map_err(|source| unreachable_at(&options, source))?;
    succeed(&mut connection).await?;
    MIGRATIONS
        .run_direct(None, &mut connection, false)
        .await
        .map_err(|error| match error {
            MigrateError::VersionMissing(version) => DatabaseError::Newer { version },
            source => DatabaseError::Migrate { source },
        })?;
    let term = leadership::begin_term(&mut connection)
        .await
        .map_err(query)?;
    let version = leadership::server_version(&mut connection)
        .await
        .map_err(query)?;
    // Connected at first use, so that an idle coordinator holds few.
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(10))
        .idle_timeout(Duration::from_secs(120))
        .max_lifetime(Duration::from_secs(3600))
        // A future dropped inside a transaction leaves its connection in it; the check finds that.
        .test_before_acquire(true)
        .connect_lazy_with(session_settings(options.clone()));
    let leadership = Leadership {
        connection,
        options,
        term,
    };
    Ok((pool, term, version, leadership))
}

/// Becomes the leader, waiting a little for the backend of one that was just killed to notice.
async fn succeed(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    let query = |source| DatabaseError::Query { source };
    let deadline = Instant::now() + SUCCESSION;
    loop {
        if leadership::try_lead(connection).await.map_err(query)? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let name = leadership::leader(connection).await.map_err(query)?;
            return Err(DatabaseError::Led { name });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
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

/// What `pg_stat_activity` and the second coordinator's error show.
fn own_name() -> String {
    format!(
        "qctl-server {}/{}",
        rustix::system::uname().nodename().to_string_lossy(),
        std::process::id()
    )
}

/// Why the coordinator must stop at once.
#[derive(Debug, thiserror::Error)]
pub enum LeadershipLost {
    /// Another one leads the database by now.
    #[error("another coordinator leads the database by now, so this one stops")]
    ToAnother,
}

/// The dedicated connection that holds the leader's lock.
pub struct Leadership {
    connection: PgConnection,
    options: PgConnectOptions,
    term: i64,
}

impl Leadership {
    /// Keeps the lock through restarts of the database; returns when another coordinator has it or
    /// has had it.
    pub async fn keep(&mut self) -> LeadershipLost {
        loop {
            tokio::time::sleep(WATCH).await;
            let checked = tokio::time::timeout(WATCH, self.connection.ping()).await;
            if matches!(checked, Ok(Ok(()))) {
                continue;
            }
            tracing::warn!("the connection that keeps the leadership is lost; taking it again");
            let mut taken_since = None;
            loop {
                match tokio::time::timeout(WATCH, self.regain()).await {
                    Ok(Ok(Regained::Ours)) => break,
                    Ok(Ok(Regained::NewTerm)) => return LeadershipLost::ToAnother,
                    // Our own dead connection may hold the lock for a moment.
                    Ok(Ok(Regained::Taken)) => {
                        let since = *taken_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= SUCCESSION {
                            return LeadershipLost::ToAnother;
                        }
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(error = %error, "the database is away");
                    }
                    Err(_) => tracing::warn!("the database does not answer"),
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            tracing::info!("the leadership is kept");
        }
    }

    async fn regain(&mut self) -> Result<Regained, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        if !leadership::try_lead(&mut connection).await? {
            return Ok(Regained::Taken);
        }
        if leadership::latest_term(&mut connection).await? != self.term {
            return Ok(Regained::NewTerm);
        }
        self.connection = connection;
        Ok(Regained::Ours)
    }

    /// Gives the lock back.
    pub async fn release(self) {
        // The lock goes with the connection, however it ends.
        let _ = self.connection.close().await;
    }
}

enum Regained {
    Ours,
    Taken,
    NewTerm,
}
