//! PostgreSQL: everything that must outlive a process, and the only arbiter of who holds what.
//!
//! Points in time are PostgreSQL's own (`clock_timestamp()`), so that servers' clocks do not matter. Every call is
//! bounded: a frozen database is an error within [`PATIENCE`], not a hang.
//!
//! Transactions lock in one order, lest two wait for each other: users, groups, devices, servers, tunnels, leases;
//! several of one kind by id.

mod admin;
mod audit;
mod claims;
mod enrolment;
mod examine;
mod forget;
mod grants;
mod group;
mod history;
mod leases;
mod openers;
mod presence;
pub mod quotas;
mod revocation;
mod routers;
mod row;
mod servers;
mod shares;
mod ssh_keys;
mod tokens;
mod tunnels;

pub use admin::Kind;
pub use audit::Wanted;
pub use claims::{Candidate, ClaimOutcome, Grant, Waits};
pub use enrolment::{Admission, NewEnrolment};
pub use examine::Examined;
pub use forget::Forgotten;
pub use grants::{Devices, Explanation, Grantee, Permission, Terms, Verdict};
pub use leases::{AdoptedLease, RestingPort, SessionMark};
pub use openers::{Bounds, CloseOutcome, Opening};
pub use presence::Reconcile;
pub use quotas::{Limited, Quotas};
pub use revocation::Revoked;
pub use routers::Standing;
pub use row::{Asker, Times, Tunnel};
pub use servers::{Other, Takeover};
pub use tokens::TokenRow;
pub use tunnels::Acknowledged;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use claims::{Activated, Activation, Claim, Landing};
use group::Group;
use openers::Call;
use rssh_proto::{DeviceId, InstanceId, ServerId, TunnelId};
use rssh_stores::postgres::Doubt;
use rssh_stores::{Latency, Postgres, UrlError};
use sqlx::Connection as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tunnels::Acknowledgement;

use crate::config::Database;
use crate::ssh_keygen::PublicKey;

/// How long a call may take before it is an error.
pub const PATIENCE: Duration = Duration::from_millis(1400);
/// How long a login may wait for its answer, which is to be there within two seconds of its first byte.
const LOGIN_PATIENCE: Duration = Duration::from_millis(1100);

/// Takes the lock of whoever migrates; it ends with the connection.
const MIGRATING: &str = "SELECT pg_advisory_lock(hashtext('rssh-serverd migrate'))";

/// How far apart statements begin that take many opens one step further: those that somebody waits for, and the others.
const APART: Duration = Duration::from_millis(20);
const APART_LATER: Duration = Duration::from_millis(50);

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database does not answer; is PostgreSQL running and reachable?")]
    Away,
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("these calls cannot go to the database together")]
    Apart,
    #[error("the database's url is wrong: {0}")]
    Url(UrlError),
    #[error("database migration: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error(
        "the database's schema is older than this program, by {0} steps; run, as the tables' owner: rssh-serverd migrate"
    )]
    Older(usize),
    #[error("the database holds {what} that this version does not understand: {value}")]
    Value { what: &'static str, value: String },
    #[error("the name {name} is taken by a {by}; every device, user, server and router needs a name of its own")]
    Taken { name: String, by: String },
    #[error("{0} is reserved")]
    Reserved(String),
    #[error("no {kind} {name} is registered; rssh-serverd {kind} add makes one")]
    Unknown { kind: &'static str, name: String },
    #[error("the key belongs to another device already: {0}")]
    KeyTaken(String),
    #[error("the token is for a fleet, so the device has to name itself; give its id")]
    Nameless,
    #[error("the token is unknown, used up or expired, or is for another; ask an administrator for a new one")]
    Token,
    #[error("{name} is revoked; to give the name back: rssh-serverd {kind} unrevoke {name}")]
    Revoked { kind: &'static str, name: String },
    #[error("{0} is not revoked; a user is forgotten after: rssh-serverd user revoke {0}")]
    NotRevoked(rssh_proto::UserId),
    #[error(
        "a certificate of {name} from before is valid until {until} UTC, and whoever holds it would be let in again; \
         wait until then, use another name, or say --all-the-same"
    )]
    StillValid { name: String, until: String },
}

impl StoreError {
    /// Whether the database has refused the values themselves, and will every time (class 22, data exception).
    pub fn is_for_good(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else {
            return false;
        };
        error.code().is_some_and(|code| code.starts_with("22"))
    }

    fn value(what: &'static str, value: impl ToString) -> Self {
        Self::Value {
            what,
            value: value.to_string(),
        }
    }
}

/// A pool of connections to the database.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    /// Whether the database may have been failed over.
    doubt: Doubt,
    /// How long calls take.
    latency: Latency,
    groups: Groups,
}

/// The steps of every open, which go to the database in groups.
#[derive(Clone)]
struct Groups {
    opens: Group<Call, Opening>,
    landings: Group<(ServerId, PublicKey), Landing>,
    claims: Group<Claim, ClaimOutcome>,
    activations: Group<Activation, Activated>,
    speakers: Group<(DeviceId, InstanceId), bool>,
    acknowledgements: Group<Acknowledgement, Acknowledged>,
    unanswered: Group<TunnelId, Option<Tunnel>>,
}

impl Groups {
    fn new() -> Self {
        Self {
            // What waits for the disk has a second statement begun while the first one's commit does.
            opens: Group::new(2, APART),
            landings: Group::new(1, APART),
            claims: Group::new(2, APART),
            activations: Group::new(1, APART),
            speakers: Group::new(1, APART),
            // Nobody waits for these.
            acknowledgements: Group::new(1, APART_LATER),
            unanswered: Group::new(1, APART_LATER),
        }
    }
}

impl Store {
    /// Prepares a pool; the first connection is made when it is needed.
    ///
    /// # Errors
    /// When the URL is not one of PostgreSQL.
    pub fn new(database: &Database) -> Result<Self, StoreError> {
        let patience = PATIENCE.as_millis().to_string();
        let postgres = Postgres::parse(database.url.as_str())
            .map_err(StoreError::Url)?
            .map(|host| {
                host.application_name("rssh-serverd").options([
                    ("statement_timeout", patience.as_str()),
                    ("lock_timeout", patience.as_str()),
                    // A server that stands still keeps rows locked for no longer either.
                    ("idle_in_transaction_session_timeout", patience.as_str()),
                ])
            });
        let options = PgPoolOptions::new()
            .max_connections(database.connections)
            .min_connections(2.min(database.connections))
            .acquire_timeout(PATIENCE)
            // A dead connection shows itself at its use, and is replaced; asking before each use costs a round trip.
            .test_before_acquire(false);
        let (pool, doubt) = postgres.pool(options);
        Ok(Self {
            pool,
            doubt,
            latency: Latency::default(),
            groups: Groups::new(),
        })
    }

    /// Brings the schema up to date, and what the daemons' roles may do with it. Where it is up to date, a role that does
    /// not own the tables has nothing to do.
    ///
    /// # Errors
    /// When the database is away, a migration fails, or is another role's to apply; what was applied before stays.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let (missing, owner) = self.within(self.schema()).await?;
        if !owner {
            return if missing == 0 {
                Ok(())
            } else {
                Err(StoreError::Older(missing))
            };
        }
        let mut connection = self.pool.acquire().await?.detach();
        // A large table takes its time. Locks do not: whoever waits for one keeps everybody else waiting.
        sqlx::raw_sql("SET statement_timeout = 0")
            .execute(&mut connection)
            .await?;
        // Two do not migrate at once. Who waits here keeps nobody else waiting.
        for step in ["SET lock_timeout = 0", MIGRATING, "RESET lock_timeout"] {
            sqlx::raw_sql(step).execute(&mut connection).await?;
        }
        migrator().run(&mut connection).await?;
        sqlx::raw_sql(include_str!("roles.sql"))
            .execute(&mut connection)
            .await?;
        Ok(connection.close().await?)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn answers(&self) -> Result<(), StoreError> {
        self.within(async {
            sqlx::query("SELECT 1").execute(&self.pool).await?;
            Ok(())
        })
        .await
    }

    /// Bounds a call.
    async fn within<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.within_time(PATIENCE, call).await
    }

    /// Bounds a call whose asker has less patience.
    async fn within_time<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let since = Instant::now();
        let call = tokio::time::timeout(patience, call);
        tokio::pin!(call);
        let answer = call.as_mut().await;
        self.latency.note(since.elapsed());
        // Doubt comes first: it decides what becomes of the connection when the call is dropped.
        match answer {
            Ok(Err(StoreError::Sql(error))) => {
                self.doubt.handle(Err(&error));
                Err(StoreError::Sql(error))
            }
            Ok(outcome) => {
                self.doubt.handle(Ok(()));
                outcome
            }
            Err(_) => {
                self.doubt.raise();
                Err(StoreError::Away)
            }
        }
    }

    /// How long calls take.
    pub fn latency(&self) -> Latency {
        self.latency.clone()
    }
}

/// The migrations, oldest first. They are only ever added to.
fn migrator() -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(
            version,
            Cow::Borrowed(name),
            MigrationType::Simple,
            sqlx::SqlStr::from_static(sql),
            false,
        )
    };
    Migrator {
        migrations: Cow::Owned(vec![
            migration(1, "tunnels", include_str!("../../migrations/0001_tunnels.sql")),
            migration(2, "enrolment", include_str!("../../migrations/0002_enrolment.sql")),
            migration(3, "routers", include_str!("../../migrations/0003_routers.sql")),
            migration(
                4,
                "authorization",
                include_str!("../../migrations/0004_authorization.sql"),
            ),
            migration(5, "api", include_str!("../../migrations/0005_api.sql")),
            migration(6, "audit", include_str!("../../migrations/0006_audit.sql")),
            migration(7, "shares", include_str!("../../migrations/0007_shares.sql")),
            migration(9, "ssh_keys", include_str!("../../migrations/0009_ssh_keys.sql")),
            migration(10, "closes", include_str!("../../migrations/0010_closes.sql")),
            migration(11, "grouped", include_str!("../../migrations/0011_grouped.sql")),
            migration(12, "history", include_str!("../../migrations/0012_history.sql")),
            migration(13, "steps", include_str!("../../migrations/0013_steps.sql")),
        ]),
        // Store::migrate locks.
        locking: false,
        ..Migrator::DEFAULT
    }
}

/// Reads a value that was validated before it was stored.
fn stored<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::value(what, text))
}

/// A counter as the database keeps it.
fn counter(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A counter as the database kept it.
fn uncounter(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A port as the database kept it.
fn port(value: i32) -> Result<u16, StoreError> {
    u16::try_from(value).map_err(|_| StoreError::value("a port", value))
}
