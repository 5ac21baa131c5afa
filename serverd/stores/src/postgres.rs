//! PostgreSQL on one host, or on several of which one takes writes.
//!
//! A URL may name several, as libpq's does (PostgreSQL manual, 34.1.1.3): `postgres://rssh@db1,db2:5433/rssh`. All are
//! asked, and the one that takes writes is used: `target_session_attrs=read-write`. Of two that do, the one of the newer
//! timeline is right: a promotion begins one, and what the older says from then on is nobody's truth.
//!
//! ```text
//! in use --an error that a fail-over explains--> in doubt --every host asked--> the host found is in use
//! ```
//! In doubt, connections are tried before they go back to the pool, so that those to a host that hangs make room.

use std::str::FromStr as _;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Row as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::url::{UrlError, hosts};

/// How long one look at all hosts may take.
const LOOK: Duration = Duration::from_millis(1500);
/// How long the others may take once one host was found that takes writes.
const OTHERS: Duration = Duration::from_millis(250);
/// The pause between two looks.
const AGAIN: Duration = Duration::from_millis(300);
/// How long a connection may take to show that it works, in doubt.
const SHOWS: Duration = Duration::from_millis(500);

/// Whether a host takes writes, and its timeline: the first eight hexadecimal digits of a WAL file's name.
const ROLE: &str = "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS writes, \
                    CASE WHEN pg_is_in_recovery() THEN 0 \
                    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8 END AS timeline";

/// Where PostgreSQL is.
#[derive(Clone)]
pub struct Postgres {
    hosts: Vec<PgConnectOptions>,
    /// The newest timeline that was seen: an older one is a host's that has been failed over from.
    newest: Arc<AtomicI64>,
}

/// What a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Role {
    writes: bool,
    timeline: i64,
}

impl Postgres {
    /// Reads a URL of one host or several; nothing is connected yet.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let url = without_session_attrs(url)?;
        let place = hosts(&url)?;
        let (before, named, after) = (&url[..place.start], &url[place.clone()], &url[place.end..]);
        let hosts = named
            .split(',')
            .map(|host| Ok(PgConnectOptions::from_str(&format!("{before}{host}{after}"))?))
            .collect::<Result<_, UrlError>>()?;
        Ok(Self {
            hosts,
            newest: Arc::default(),
        })
    }

    /// Changes how each host is connected to.
    #[must_use]
    pub fn map(mut self, change: impl Fn(PgConnectOptions) -> PgConnectOptions) -> Self {
        self.hosts = self.hosts.into_iter().map(change).collect();
        self
    }

    /// Connects to the host that takes writes.
    ///
    /// # Errors
    /// When no host does, within a moment.
    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        self.find().await.map(|(_, connection)| connection)
    }

    /// Goes on with a connection that was kept, or else connects to the host that takes writes.
    ///
    /// # Errors
    /// When no host does, within a moment.
    pub async fn go_on(&self, kept: Option<PgConnection>) -> Result<PgConnection, sqlx::Error> {
        match kept {
            Some(live) => Ok(live),
            None => self.connect().await,
        }
    }

    /// A pool of connections to the host that takes writes, wherever that is by then. Its first connection is made when
    /// it is needed.
    pub fn pool(&self, options: PgPoolOptions) -> (PgPool, Doubt) {
        let doubt = Doubt::default();
        let (before, after, role) = (doubt.clone(), doubt.clone(), self.clone());
        let pool = options
            .after_connect(move |connection, _| {
                let postgres = role.clone();
                Box::pin(async move { postgres.accept(connection).await.map(drop) })
            })
            .before_acquire(move |_, meta| {
                let current = before.is_current(meta.age);
                Box::pin(async move { Ok(current) })
            })
            .after_release(move |connection, meta| {
                let (current, doubted) = (after.is_current(meta.age), after.is_raised());
                Box::pin(async move {
                    if !current {
                        return Ok(false);
                    }
                    if doubted {
                        let shown = tokio::time::timeout(SHOWS, connection.ping()).await;
                        return shown.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(|()| true);
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(self.hosts[0].clone());
        if self.hosts.len() > 1 {
            tokio::spawn(self.clone().follow(pool.clone(), doubt.clone()));
        }
        (pool, doubt)
    }

    /// Keeps a pool at the host that takes writes, until the pool is closed.
    async fn follow(self, pool: PgPool, doubt: Doubt) {
        let mut at = 0;
        while !pool.is_closed() {
            match self.find().await {
                Ok((found, connection)) => {
                    // Nobody waits for its end.
                    drop(connection.close().await);
                    if found != at {
                        at = found;
                        let host = self.hosts[at].get_host();
                        tracing::warn!(
                            host,
                            port = self.hosts[at].get_port(),
                            "the database takes writes elsewhere"
                        );
                        pool.set_connect_options(self.hosts[at].clone());
                        doubt.moved();
                    }
                    doubt.lower();
                }
                Err(error) => {
                    tracing::debug!(%error, "no host of the database takes writes");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            tokio::time::sleep(AGAIN).await;
            doubt.0.raised_now.notified().await;
        }
    }

    /// Asks every host at once; takes the one that takes writes, of two the newer.
    async fn find(&self) -> Result<(usize, PgConnection), sqlx::Error> {
        let mut looks = JoinSet::new();
        for (at, host) in self.hosts.iter().cloned().enumerate() {
            let postgres = self.clone();
            looks.spawn(async move {
                let mut connection = PgConnection::connect_with(&host).await?;
                let role = postgres.accept(&mut connection).await?;
                Ok::<_, sqlx::Error>((role, at, connection))
            });
        }
        let mut best: Option<(Role, usize, PgConnection)> = None;
        let mut fault = None;
        let mut end = tokio::time::Instant::now() + LOOK;
        while let Ok(Some(look)) = tokio::time::timeout_at(end, looks.join_next()).await {
            match look {
                Ok(Ok(found)) => {
                    end = end.min(tokio::time::Instant::now() + OTHERS);
                    if best.as_ref().is_none_or(|(role, ..)| role.timeline < found.0.timeline) {
                        best = Some(found);
                    }
                }
                Ok(Err(error)) => fault = Some(error),
                Err(_) => {}
            }
        }
        match best {
            Some((_, at, connection)) => Ok((at, connection)),
            None => Err(fault.unwrap_or(sqlx::Error::PoolTimedOut)),
        }
    }

    /// Accepts a host that takes writes and is of no older timeline than one that did.
    async fn accept(&self, connection: &mut PgConnection) -> Result<Role, sqlx::Error> {
        let row = sqlx::query(ROLE).fetch_one(connection).await?;
        let role = Role {
            writes: row.try_get("writes")?,
            timeline: row.try_get("timeline")?,
        };
        let newest = self.newest.load(Ordering::Relaxed);
        if let Some(fault) = role.fault(newest) {
            return Err(sqlx::Error::Configuration(fault.into()));
        }
        self.newest.fetch_max(role.timeline, Ordering::Relaxed);
        Ok(role)
    }
}

impl Role {
    /// Why a host cannot be used, when this is the newest timeline that was seen.
    fn fault(self, newest: i64) -> Option<String> {
        if !self.writes {
            return Some("this host takes no writes: it is a stand-by, or read-only".to_owned());
        }
        (self.timeline < newest).then(|| {
            let Self { timeline, .. } = self;
            format!("this host is of timeline {timeline}, another was promoted to {newest}: stop it, or rewind it")
        })
    }
}

/// Whether the host in use is still the right one; clones share it.
#[derive(Clone, Default)]
pub struct Doubt(Arc<Shared>);

#[derive(Default)]
struct Shared {
    raised: AtomicBool,
    raised_now: Notify,
    /// Connections from before are to another host.
    moved: Mutex<Option<Instant>>,
}

impl Doubt {
    /// Takes what became of a call: a success ends the doubt, an error that a fail-over explains raises it.
    pub fn handle(&self, outcome: Result<(), &sqlx::Error>) {
        match outcome {
            Ok(()) => self.lower(),
            Err(error) if explains(error) => {
                if is_read_only(error) {
                    // Its other connections are no better.
                    self.moved();
                }
                self.raise();
            }
            Err(_) => {}
        }
    }

    /// Raises it: a call had no answer in time.
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::Relaxed);
        self.0.raised_now.notify_one();
    }

    fn lower(&self) {
        self.0.raised.store(false, Ordering::Relaxed);
    }

    /// Whether it is raised.
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::Relaxed)
    }

    fn moved(&self) {
        *self.0.moved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection of this age is to the host in use.
    fn is_current(&self, age: Duration) -> bool {
        let moved = *self.0.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.is_none_or(|moved| age <= moved.elapsed())
    }
}

/// Whether an error may be a fail-over's: the host is gone, is going, or takes no writes any more.
fn explains(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) | sqlx::Error::Configuration(_) => {
            true
        }
        // Class 57P: operator intervention. 08: connection. 25006: read-only transaction.
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("57P") || code.starts_with("08") || code == "25006"),
        _ => false,
    }
}

fn is_read_only(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| code == "25006"))
}

/// The URL without libpq's `target_session_attrs`, which sqlx does not know and which has one sensible value here.
fn without_session_attrs(url: &str) -> Result<String, UrlError> {
    let Some((before, query)) = url.split_once('?') else {
        return Ok(url.to_owned());
    };
    let mut left = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("target_session_attrs", "read-write" | "primary")) => {}
            Some(("target_session_attrs", other)) => return Err(UrlError::SessionAttrs(other.to_owned())),
            _ => left.push(pair),
        }
    }
    Ok(match left.is_empty() {
        true => before.to_owned(),
        false => format!("{before}?{}", left.join("&")),
    })
}

#[cfg(test)]
#[path = "postgres_tests.rs"]
mod tests;
