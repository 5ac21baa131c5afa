//! The registry in Redis: every entry at start and now and then, and each that changes at once.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, PushKind, RedisError};
use rssh_proto::ServerId;
use rssh_proto::registration::{REDIS_CHANNEL, REDIS_PREFIX, redis_key};
use rssh_stores::Redis;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::route::Source;
use crate::source::{PAGE, Reading};

/// How long Redis may take to connect, and for each answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait before trying again.
const PAUSE: Duration = Duration::from_millis(500);
/// The most announcements of changes that may wait; what is over is found by the next look at everything.
const WAITING: usize = 1024;
/// Keys per step of a scan.
const STEP: usize = 500;

/// Reads until nobody listens.
pub async fn run(redis: Redis, interval: Duration, readings: mpsc::Sender<Reading>) {
    loop {
        let Err(error) = follow(&redis, interval, &readings).await else {
            return;
        };
        let away = Reading::Away {
            source: Source::Redis,
            reason: error.to_string(),
        };
        if readings.send(away).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Follows one connection until it fails, or nobody listens.
async fn follow(redis: &Redis, interval: Duration, readings: &mpsc::Sender<Reading>) -> Result<(), RedisError> {
    let (pushes, mut pushed) = mpsc::channel::<PushInfo>(WAITING);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE))
        .set_push_sender(move |push| pushes.try_send(push));
    let mut connection = redis.connect(&config).await?;
    // First the channel, then the look: a change in between is seen twice rather than never.
    connection.subscribe(REDIS_CHANNEL).await?;
    let mut next = Instant::now();
    loop {
        let reading = tokio::select! {
            () = sleep_until(next) => {
                next = Instant::now() + interval;
                Some(Reading::Redis(everything(&mut connection, readings).await?))
            }
            push = pushed.recv() => match push {
                Some(push) if push.kind == PushKind::Message => changed(&mut connection, &push).await?,
                Some(push) if push.kind == PushKind::Disconnection => return Err(lost()),
                Some(_) => None,
                None => return Err(lost()),
            },
        };
        if let Some(reading) = reading
            && readings.send(reading).await.is_err()
        {
            return Ok(());
        }
    }
}

fn lost() -> RedisError {
    RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionAborted))
}

/// Reads every entry, and hands them on by pages. Returns whose there are.
async fn everything(
    connection: &mut MultiplexedConnection,
    readings: &mpsc::Sender<Reading>,
) -> Result<BTreeSet<ServerId>, RedisError> {
    let mut found = BTreeSet::new();
    for servers in servers(connection).await?.chunks(PAGE) {
        let entries = entries(connection, servers).await?;
        found.extend(entries.iter().map(|(server, _)| server.clone()));
        // Nobody listens any more: what follows will say so.
        let _ = readings.send(Reading::Page(Source::Redis, entries)).await;
    }
    Ok(found)
}

/// Reads every entry.
pub(crate) async fn snapshot(connection: &mut MultiplexedConnection) -> Result<Vec<(ServerId, String)>, RedisError> {
    let mut all = Vec::new();
    for servers in servers(connection).await?.chunks(PAGE) {
        all.append(&mut entries(connection, servers).await?);
    }
    Ok(all)
}

/// The servers that have an entry.
async fn servers(connection: &mut MultiplexedConnection) -> Result<Vec<ServerId>, RedisError> {
    let mut servers: Vec<ServerId> = Vec::new();
    let mut cursor = 0_u64;
    loop {
        let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(format!("{REDIS_PREFIX}*"))
            .arg("COUNT")
            .arg(STEP)
            .query_async(connection)
            .await?;
        // A key that is no server's is nobody's entry.
        servers.extend(
            keys.iter()
                .filter_map(|key| key.strip_prefix(REDIS_PREFIX)?.parse().ok()),
        );
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    // A scan may return a key twice.
    servers.sort();
    servers.dedup();
    Ok(servers)
}

/// The entries of some servers; one that is gone meanwhile is left out.
async fn entries(
    connection: &mut MultiplexedConnection,
    servers: &[ServerId],
) -> Result<Vec<(ServerId, String)>, RedisError> {
    let keys: Vec<String> = servers.iter().map(redis_key).collect();
    let values: Vec<Option<Vec<u8>>> = redis::cmd("MGET").arg(keys).query_async(connection).await?;
    let found = servers.iter().cloned().zip(values);
    Ok(found
        .filter_map(|(server, value)| Some((server, text(value?))))
        .collect())
}

async fn changed(connection: &mut MultiplexedConnection, push: &PushInfo) -> Result<Option<Reading>, RedisError> {
    // Channel and message.
    let server = push.data.get(1).and_then(|value| match value {
        redis::Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse::<ServerId>().ok(),
        redis::Value::SimpleString(text) => text.parse().ok(),
        _ => None,
    });
    let Some(server) = server else {
        return Ok(None);
    };
    let value: Option<Vec<u8>> = redis::cmd("GET")
        .arg(redis_key(&server))
        .query_async(connection)
        .await?;
    Ok(value.map(|value| Reading::Changed(server, text(value))))
}

/// An entry as text; bytes that are none come out as something that no signature fits.
fn text(value: Vec<u8>) -> String {
    String::from_utf8_lossy(&value).into_owned()
}
