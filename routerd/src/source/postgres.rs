//! The registry in PostgreSQL, which has the last word on which servers there are.

use std::collections::BTreeSet;
use std::time::Duration;

use rssh_proto::{Generation, RouterId, ServerId, UserId};
use rssh_stores::Postgres;
use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::route::{Row, Source};
use crate::source::{Led, PAGE, Reading, Shared};

/// How long PostgreSQL may take, to connect and to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait before trying again.
const PAUSE: Duration = Duration::from_millis(500);

const SERVERS: &str = "SELECT id, generation, lost_at IS NOT NULL AS lost, \
                       extract(epoch FROM clock_timestamp())::float8 AS at FROM servers";

const ENTRIES: &str = "SELECT id, registration FROM servers WHERE id = ANY($1) AND registration IS NOT NULL";

/// What servers wait for that take an address over.
const LED: &str = "INSERT INTO routers (id, routes, seen_at) SELECT name, $2::jsonb, to_timestamp($3) FROM identities WHERE name = $1 AND kind = 'router' \
                   ON CONFLICT (id) DO UPDATE SET routes = excluded.routes, seen_at = excluded.seen_at";

/// Looks at everything every `interval` and whenever it is asked to, and writes down where users are led, until nobody
/// listens.
pub async fn run(
    router: RouterId,
    postgres: Postgres,
    interval: Duration,
    shared: Shared,
    readings: mpsc::Sender<Reading>,
) {
    let mut connection = None;
    let (mut looks, mut looked, mut unwritten) = (0, 0.0, false);
    loop {
        let known_before = shared.known();
        let look = async {
            let live = postgres.go_on(connection.take()).await?;
            look(live).await
        };
        let (told, led) = shared.led();
        // One that has timed out is dropped with its half-read answer.
        let (reading, pause) = match in_time(look).await {
            Ok((mut live, rows, at)) => {
                // As of the last look: what this one found, HAProxy has not been told yet.
                if told == looks && looks > 0 {
                    let written = write(&mut live, &router, &led, looked).await;
                    if let Err(error) = &written
                        && !unwritten
                    {
                        tracing::warn!(%error, "cannot write down where users are led: servers may wait for this router");
                    }
                    unwritten = written.is_err();
                }
                match hand_on(&mut live, &rows, &readings).await {
                    Ok(()) => {
                        looks += 1;
                        looked = at;
                        connection = Some(live);
                        (Reading::Database { rows, known_before }, interval)
                    }
                    Err(reason) => (away(reason), PAUSE),
                }
            }
            Err(reason) => (away(reason), PAUSE),
        };
        if readings.send(reading).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.look.notified() => {}
        }
    }
}

/// Hands on the entries of the servers that are not lost, by pages.
async fn hand_on(live: &mut PgConnection, rows: &[Row], readings: &mpsc::Sender<Reading>) -> Result<(), String> {
    for page in alive(rows).chunks(PAGE) {
        let entries = in_time(entries(live, page)).await?;
        // Nobody listens any more: what follows will say so.
        let _ = readings.send(Reading::Page(Source::Database, entries)).await;
    }
    Ok(())
}

/// What PostgreSQL answers, or why it does not.
async fn in_time<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

async fn write(connection: &mut PgConnection, router: &RouterId, led: &Led, at: f64) -> Result<(), sqlx::Error> {
    let routes: Vec<(&str, String)> = led
        .iter()
        .map(|(server, address)| (server.as_str(), address.to_string()))
        .collect();
    let routes = serde_json::to_string(&routes).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let write = sqlx::query(LED)
        .bind(router.as_str())
        .bind(routes)
        .bind(at)
        .execute(connection);
    timeout(PATIENCE, write)
        .await
        .map_err(|_| sqlx::Error::PoolTimedOut)?
        .map(drop)
}

/// How often revocations are looked for: they are to act within seconds.
const REVOCATIONS: Duration = Duration::from_secs(1);

const REVOKED: &str = "SELECT name FROM identities WHERE revoked_at IS NOT NULL AND kind = 'user'";

/// Looks for revoked users, on a connection of its own, until nobody listens.
pub async fn revocations(postgres: Postgres, readings: mpsc::Sender<Reading>) {
    let mut connection = None;
    loop {
        let look = async {
            let mut live = postgres.go_on(connection.take()).await?;
            let names = revoked(&mut live).await?;
            Ok::<_, sqlx::Error>((live, names))
        };
        let revoked = match timeout(PATIENCE, look).await {
            Ok(Ok((live, names))) => {
                connection = Some(live);
                Ok(names)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        };
        if readings.send(Reading::Revoked(revoked)).await.is_err() {
            return;
        }
        sleep(REVOCATIONS).await;
    }
}

async fn revoked(live: &mut PgConnection) -> Result<BTreeSet<UserId>, sqlx::Error> {
    let names: Vec<String> = sqlx::query_scalar(REVOKED).fetch_all(live).await?;
    // The table has only valid names; one that is not is nobody's.
    Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
}

fn away(reason: String) -> Reading {
    Reading::Away {
        source: Source::Database,
        reason,
    }
}

/// What an examination of the database finds.
pub(crate) struct Examined {
    pub rows: Vec<Row>,
    /// The entries of those that are not lost.
    pub entries: Vec<(ServerId, String)>,
    pub revoked: BTreeSet<UserId>,
    /// What its clock says, in Unix seconds.
    pub clock: i64,
    /// How long ago this router wrote down where it leads users, in seconds.
    pub told_ago: Option<i64>,
    /// What the role may not do though it has to: `INSERT on routers`.
    pub denied: Vec<String>,
}

const DENIED: &str = "SELECT p || ' on routers' FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) p \
                      WHERE NOT has_table_privilege('routers', p) ORDER BY 1";

/// Looks at everything once, for an examination.
///
/// # Errors
/// When the database is away, or does not let this role read.
pub(crate) async fn examine(postgres: &Postgres, router: &RouterId) -> Result<Examined, sqlx::Error> {
    let (mut live, rows, _) = look(postgres.connect().await?).await?;
    let entries = entries(&mut live, &alive(&rows)).await?;
    let revoked = revoked(&mut live).await?;
    let clock = sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::bigint");
    let clock = clock.fetch_one(&mut live).await?;
    let denied: Vec<String> = sqlx::query_scalar(DENIED).fetch_all(&mut live).await?;
    let ago = "SELECT extract(epoch FROM clock_timestamp() - seen_at)::bigint FROM routers WHERE id = $1";
    let told_ago = if denied.is_empty() {
        let ago = sqlx::query_scalar(ago).bind(router.as_str());
        ago.fetch_optional(&mut live).await?
    } else {
        None
    };
    Ok(Examined {
        rows,
        entries,
        revoked,
        clock,
        told_ago,
        denied,
    })
}

/// The servers that are not lost: an entry of one that is says nothing.
fn alive(rows: &[Row]) -> Vec<&ServerId> {
    rows.iter().filter(|row| !row.lost).map(|row| &row.server).collect()
}

/// The entries of some servers, of those that have one.
async fn entries(connection: &mut PgConnection, servers: &[&ServerId]) -> Result<Vec<(ServerId, String)>, sqlx::Error> {
    let ids: Vec<&str> = servers.iter().map(|server| server.as_str()).collect();
    let rows: Vec<(String, String)> = sqlx::query_as(ENTRIES).bind(ids).fetch_all(connection).await?;
    // The table has only valid ids; one that is not is nobody's.
    let valid = rows
        .into_iter()
        .filter_map(|(id, entry)| Some((id.parse().ok()?, entry)));
    Ok(valid.collect())
}

async fn look(mut connection: PgConnection) -> Result<(PgConnection, Vec<Row>, f64), sqlx::Error> {
    let mut at = 0.0;
    let rows = sqlx::query(SERVERS).fetch_all(&mut connection).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let id: String = row.try_get("id")?;
        at = row.try_get("at")?;
        let generation: i64 = row.try_get("generation")?;
        // The table has only valid ids; one that is not is nobody's.
        let Ok(server) = id.parse::<ServerId>() else {
            continue;
        };
        found.push(Row {
            server,
            generation: Generation(u64::try_from(generation).unwrap_or(0)),
            lost: row.try_get("lost")?,
        });
    }
    Ok((connection, found, at))
}
