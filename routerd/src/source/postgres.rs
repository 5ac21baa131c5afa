//! The registry in PostgreSQL, which has the last word on which servers there are.

use std::str::FromStr as _;
use std::time::Duration;

use rssh_proto::{Generation, ServerId};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::route::{Row, Source};
use crate::source::{Reading, Shared};

/// How long PostgreSQL may take, to connect and to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait before trying again.
const PAUSE: Duration = Duration::from_millis(500);

const SERVERS: &str = "SELECT id, registration, generation, lost_at IS NOT NULL AS lost FROM servers";

/// Reads the URL; nothing is connected yet.
///
/// # Errors
/// When it is not one.
pub fn options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    PgConnectOptions::from_str(url)
}

/// Looks at everything every `interval` and whenever it is asked to, until nobody listens.
pub async fn run(options: PgConnectOptions, interval: Duration, shared: Shared, readings: mpsc::Sender<Reading>) {
    let mut connection = None;
    loop {
        let known_before = shared.known();
        let look = async {
            let live = match connection.take() {
                Some(live) => live,
                None => PgConnection::connect_with(&options).await?,
            };
            look(live).await
        };
        // One that has timed out is dropped with its half-read answer.
        let (reading, pause) = match timeout(PATIENCE, look).await {
            Ok(Ok((live, rows))) => {
                connection = Some(live);
                (Reading::Database { rows, known_before }, interval)
            }
            Ok(Err(error)) => (away(error.to_string()), PAUSE),
            Err(_) => (away(format!("no answer within {PATIENCE:?}")), PAUSE),
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

fn away(reason: String) -> Reading {
    Reading::Away {
        source: Source::Database,
        reason,
    }
}

type Found = Vec<(Row, Option<String>)>;

async fn look(mut connection: PgConnection) -> Result<(PgConnection, Found), sqlx::Error> {
    let rows = sqlx::query(SERVERS).fetch_all(&mut connection).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let id: String = row.try_get("id")?;
        let generation: i64 = row.try_get("generation")?;
        // The table has only valid ids; one that is not is nobody's.
        let Ok(server) = id.parse::<ServerId>() else {
            continue;
        };
        let entry: Option<String> = row.try_get("registration")?;
        let row = Row {
            server,
            generation: Generation(u64::try_from(generation).unwrap_or(0)),
            lost: row.try_get("lost")?,
        };
        found.push((row, entry));
    }
    Ok((connection, found))
}
