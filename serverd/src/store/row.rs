//! The row of a tunnel: its columns, and how they are read.

use rssh_proto::payload::TunnelState;
use rssh_proto::{DeviceId, Epoch, Failure, ServerId, SessionId, Target, TunnelId, UserId};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::{StoreError, port, stored, uncounter};

/// A tunnel as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub id: TunnelId,
    pub user: UserId,
    pub device: DeviceId,
    pub target: Target,
    pub state: TunnelState,
    pub epoch: Epoch,
    /// Where it landed last.
    pub place: Option<(ServerId, u16)>,
    pub remote_port: Option<u16>,
    pub idle_s: Option<u32>,
    /// When it ends, in Unix seconds, and in seconds from the answer.
    pub expires_at: i64,
    pub ttl_s: u32,
    /// How long its first asker still waits, in milliseconds from the answer.
    pub within_ms: u32,
    /// Why it failed; of an active one, what its device said of the target in the last seconds.
    pub failure: Option<Failure>,
}

/// Where answers about a tunnel go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub user: UserId,
    pub session: SessionId,
    pub request: TunnelId,
}

/// When a tunnel reached each stage: milliseconds from its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Unix seconds.
    pub requested_at: i64,
    pub answered_ms: Option<u32>,
    pub landed_ms: Option<u32>,
    pub claimed_ms: Option<u32>,
    pub active_ms: Option<u32>,
    pub ended_ms: Option<u32>,
}

/// The columns that [`read`] reads.
macro_rules! tunnel_columns {
    () => {
        "t.id, t.user_id, t.device_id, t.target, t.state, t.epoch, t.server_id, t.port, t.remote_port, t.idle_s,
         extract(epoch FROM t.expires_at)::bigint AS expires_at,
         greatest(extract(epoch FROM t.expires_at - clock_timestamp()), 0)::bigint AS ttl_s,
         greatest(extract(epoch FROM t.deadline_at - clock_timestamp()) * 1000, 0)::bigint AS within_ms,
         CASE WHEN t.state = 'failed' OR t.failed_at > clock_timestamp() - interval '5 s' THEN t.failure_kind END
             AS failure_kind, t.failure_message"
    };
}
pub(super) use tunnel_columns;

/// The columns, after a tunnel's, that [`times`] reads.
macro_rules! stage_columns {
    () => {
        ", extract(epoch FROM t.created_at)::bigint AS requested_at,
         (extract(epoch FROM t.answered_at - t.created_at) * 1000)::bigint AS answered_ms,
         (extract(epoch FROM t.landed_at - t.created_at) * 1000)::bigint AS landed_ms,
         (extract(epoch FROM t.claimed_at - t.created_at) * 1000)::bigint AS claimed_ms,
         (extract(epoch FROM t.active_at - t.created_at) * 1000)::bigint AS active_ms,
         (extract(epoch FROM t.ended_at - t.created_at) * 1000)::bigint AS ended_ms"
    };
}
pub(super) use stage_columns;

/// The states in which a tunnel may still carry something.
macro_rules! live {
    () => {
        "('requested', 'claimed', 'active', 'reconnecting')"
    };
}
pub(super) use live;

/// The column, after a tunnel's, that [`with_askers`] reads: the askers who may still listen.
macro_rules! asker_column {
    () => {
        ", ARRAY(SELECT o.request_id || ' ' || o.session FROM openers o
                 WHERE o.tunnel_id = t.id AND o.released_by IS NULL AND o.waits_until > clock_timestamp() LIMIT 64)
             AS askers"
    };
}
pub(super) use asker_column;

pub(super) fn read(row: &PgRow) -> Result<Tunnel, StoreError> {
    let place = match (
        row.try_get::<Option<&str>, _>("server_id")?,
        row.try_get::<Option<i32>, _>("port")?,
    ) {
        (Some(server), Some(number)) => Some((stored("a server", server)?, port(number)?)),
        _ => None,
    };
    let failure = match row.try_get::<Option<&str>, _>("failure_kind")? {
        Some(kind) => Some(Failure::new(
            serde_json::from_value(kind.into()).map_err(|_| StoreError::value("a failure", kind))?,
            row.try_get::<Option<&str>, _>("failure_message")?.unwrap_or_default(),
        )),
        None => None,
    };
    let state: &str = row.try_get("state")?;
    let unsigned = |column| {
        row.try_get::<i64, _>(column)
            .map(|value| u32::try_from(value).unwrap_or(u32::MAX))
    };
    Ok(Tunnel {
        id: row.try_get::<uuid::Uuid, _>("id")?.into(),
        user: stored("a user", row.try_get("user_id")?)?,
        device: stored("a device", row.try_get("device_id")?)?,
        target: stored("a target", row.try_get("target")?)?,
        state: serde_json::from_value(state.into()).map_err(|_| StoreError::value("a state", state))?,
        epoch: Epoch(uncounter(row.try_get("epoch")?)),
        place,
        remote_port: row.try_get::<Option<i32>, _>("remote_port")?.map(port).transpose()?,
        idle_s: row
            .try_get::<Option<i32>, _>("idle_s")?
            .and_then(|seconds| u32::try_from(seconds).ok()),
        expires_at: row.try_get("expires_at")?,
        ttl_s: unsigned("ttl_s")?,
        within_ms: unsigned("within_ms")?,
        failure,
    })
}

/// A tunnel with the times of its stages.
pub(super) fn traced(row: &PgRow) -> Result<(Tunnel, Times), StoreError> {
    Ok((read(row)?, times(row)?))
}

/// A tunnel with its askers.
pub(super) fn with_askers(row: &PgRow) -> Result<(Tunnel, Vec<Asker>), StoreError> {
    let tunnel = read(row)?;
    let askers = askers(row, &tunnel)?;
    Ok((tunnel, askers))
}

/// The askers of a tunnel, in its row.
pub(super) fn askers(row: &PgRow, tunnel: &Tunnel) -> Result<Vec<Asker>, StoreError> {
    let texts: Vec<String> = row.try_get("askers")?;
    let asker = |text: &String| {
        let (request, session) = text
            .split_once(' ')
            .ok_or_else(|| StoreError::value("an asker", text))?;
        Ok(Asker {
            user: tunnel.user.clone(),
            session: stored("a session", session)?,
            request: stored("a request", request)?,
        })
    };
    texts.iter().map(asker).collect()
}

fn times(row: &PgRow) -> Result<Times, StoreError> {
    let after = |column| {
        let value: Option<i64> = row.try_get(column)?;
        Ok::<_, StoreError>(value.map(|ms| u32::try_from(ms.max(0)).unwrap_or(u32::MAX)))
    };
    Ok(Times {
        requested_at: row.try_get("requested_at")?,
        answered_ms: after("answered_ms")?,
        landed_ms: after("landed_ms")?,
        claimed_ms: after("claimed_ms")?,
        active_ms: after("active_ms")?,
        ended_ms: after("ended_ms")?,
    })
}
