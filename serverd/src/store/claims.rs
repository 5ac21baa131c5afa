//! The steps by which a device's login becomes a tunnel: whose it is, which tunnel it claims, and that it listens.

use std::collections::HashMap;
use std::time::Duration;

use rssh_proto::payload::TunnelState;
use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, ServerId, TunnelId};
use sqlx::Row as _;

use super::leases::SessionMark;
use super::row::{
    Asker, Times, Tunnel, asker_column, askers, read, stage_columns, traced, tunnel_columns, with_askers,
};
use super::{LOGIN_PATIENCE, PATIENCE, Store, StoreError, counter, port, stored};
use crate::ssh_keygen::PublicKey;

/// Whether a tunnel waits for a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It has one, and may come back at any time.
    No,
    /// For its first.
    First,
    /// For another.
    Again,
}

/// A tunnel that a device's login may be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub tunnel: TunnelId,
    pub waits: Waits,
    /// The port wished for: its last one on this server, or the asker's hint.
    pub port: Option<u16>,
}

/// Whose key it is, and which of the device's tunnels wait for a landing; `None` when there is nothing to land.
pub(super) type Landing = Option<(DeviceId, Vec<Candidate>)>;

/// A tunnel that has become active, and whom to tell; `None` when it has moved on since.
pub(super) type Activated = Option<(Tunnel, Times, Vec<Asker>)>;

/// A lease that was granted.
#[derive(Debug)]
pub struct Grant {
    pub tunnel: Tunnel,
    pub askers: Vec<Asker>,
    /// The server whose older session of the tunnel is now without a lease, with its epoch.
    pub older: Option<ServerId>,
}

/// What became of a claim.
#[derive(Debug)]
pub enum ClaimOutcome {
    Granted(Box<Grant>),
    Refused(Failure),
}

impl Store {
    /// Whose key this is, and which of the device's tunnels wait for a landing. `None` when there is nothing to land.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn landing(
        &self,
        server: &ServerId,
        key: &PublicKey,
    ) -> Result<Option<(DeviceId, Vec<Candidate>)>, StoreError> {
        let store = self.clone();
        let run = move |calls: Vec<(ServerId, PublicKey)>| {
            let store = store.clone();
            async move { store.within_time(LOGIN_PATIENCE, landings(&store, &calls)).await }
        };
        let call = (server.clone(), key.clone());
        self.groups.landings.ask(LOGIN_PATIENCE, call, run).await
    }

    /// Gives a port of this server to a tunnel, and takes the tunnel's older lease away, in one step.
    ///
    /// # Errors
    /// When the database is away, or the port is leased already, which would be a fault of this server.
    pub async fn claim(
        &self,
        server: &ServerId,
        leased: u16,
        device: &DeviceId,
        tunnel: TunnelId,
        mark: &SessionMark,
        rest_s: u32,
    ) -> Result<ClaimOutcome, StoreError> {
        let call = Claim {
            server: server.clone(),
            port: leased,
            device: device.clone(),
            tunnel,
            mark: mark.clone(),
            rest_s,
        };
        let store = self.clone();
        let run = move |calls: Vec<Claim>| {
            let store = store.clone();
            async move { store.within(claim_all(&store, &calls)).await }
        };
        self.groups.claims.ask(PATIENCE, call, run).await
    }

    /// Marks a claimed tunnel as active, whose ssh had landed so long ago; `None` when it has moved on since.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn activate(
        &self,
        tunnel: TunnelId,
        epoch: Epoch,
        landed_ago: Option<Duration>,
    ) -> Result<Option<(Tunnel, Times, Vec<Asker>)>, StoreError> {
        let call = Activation {
            tunnel,
            epoch,
            landed_ago,
        };
        let store = self.clone();
        let run = move |calls: Vec<Activation>| {
            let store = store.clone();
            async move { store.within(activate_all(&store, &calls)).await }
        };
        self.groups.activations.ask(PATIENCE, call, run).await
    }
}

/// Whose keys these are, and which tunnels of each device wait for a landing; in their order.
async fn landings(store: &Store, calls: &[(ServerId, PublicKey)]) -> Result<Vec<Landing>, StoreError> {
    let servers: Vec<&str> = calls.iter().map(|(server, _)| server.as_str()).collect();
    let keys: Vec<&str> = calls.iter().map(|(_, key)| key.as_str()).collect();
    let rows: Vec<(i32, String, uuid::Uuid, String, Option<i32>)> =
        sqlx::query_as("SELECT at, device, tunnel, state, wish FROM take_logins($1, $2)")
            .bind(&servers)
            .bind(&keys)
            .fetch_all(&store.pool)
            .await?;
    let mut found = vec![None; calls.len()];
    for (at, device, tunnel, state, wish) in rows {
        let slot = usize::try_from(at - 1).ok().and_then(|at| found.get_mut(at));
        let (_, candidates) = match slot {
            Some(Some(landing)) => landing,
            Some(none) => none.insert((stored("a device", &device)?, Vec::new())),
            None => continue,
        };
        candidates.push(Candidate {
            tunnel: tunnel.into(),
            waits: match state.as_str() {
                "requested" => Waits::First,
                "reconnecting" => Waits::Again,
                _ => Waits::No,
            },
            port: wish.map(port).transpose()?,
        });
    }
    Ok(found)
}

/// A claim of a tunnel by a login.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    server: ServerId,
    port: u16,
    device: DeviceId,
    tunnel: TunnelId,
    mark: SessionMark,
    rest_s: u32,
}

/// What the database says when a port is not free: `take_claims`.
const PORT_TAKEN: &str = "RS001";

/// Grants claims, all in one step; those that stand in each other's way have to come one by one.
async fn claim_all(store: &Store, calls: &[Claim]) -> Result<Vec<ClaimOutcome>, StoreError> {
    let mut wanted: Vec<TunnelId> = calls.iter().map(|call| call.tunnel).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.len() < calls.len() {
        return Err(StoreError::Apart);
    }
    let mut grants = match granted(store, calls).await {
        Err(StoreError::Sql(sqlx::Error::Database(error))) if error.code().is_some_and(|code| code == PORT_TAKEN) => {
            let [only] = calls else { return Err(StoreError::Apart) };
            let message = format!("port {} of {} is leased or resting; try again", only.port, only.server);
            return Ok(vec![ClaimOutcome::Refused(Failure::new(FailureKind::Busy, message))]);
        }
        grants => grants?,
    };
    let mut outcomes = Vec::with_capacity(calls.len());
    for call in calls {
        outcomes.push(match grants.remove(&call.tunnel) {
            Some(grant) => ClaimOutcome::Granted(Box::new(grant)),
            // What was granted to others stands, whatever becomes of this look.
            None => ClaimOutcome::Refused(refusal(store, &call.device, call.tunnel).await.unwrap_or_else(|_| {
                Failure::new(FailureKind::Busy, "the server cannot reach its database; try again")
            })),
        });
    }
    Ok(outcomes)
}

/// Writes what can be granted of some claims.
async fn granted(store: &Store, calls: &[Claim]) -> Result<HashMap<TunnelId, Grant>, StoreError> {
    fn all<T>(calls: &[Claim], value: impl Fn(&Claim) -> T) -> Vec<T> {
        calls.iter().map(value).collect()
    }
    // A transaction of one statement: a server that stands still keeps nobody's rows locked.
    let rows = sqlx::query(concat!(
        "SELECT c.older, ",
        tunnel_columns!(),
        asker_column!(),
        " FROM take_claims($1, $2, $3, $4, $5, $6, $7, $8) c, LATERAL (SELECT (c.tunnel).*) t"
    ))
    .bind(all(calls, |call| call.tunnel.uuid()))
    .bind(all(calls, |call| call.device.to_string()))
    .bind(all(calls, |call| call.server.to_string()))
    .bind(all(calls, |call| i32::from(call.port)))
    .bind(all(calls, |call| call.mark.process.pid))
    .bind(all(calls, |call| counter(call.mark.process.start)))
    .bind(all(calls, |call| call.mark.boot_id.clone()))
    .bind(all(calls, |call| f64::from(call.rest_s)))
    .fetch_all(&store.pool)
    .await?;
    let grant = |row| {
        let (tunnel, askers) = with_askers(row)?;
        let older = row.try_get::<Option<&str>, _>("older")?;
        let older = older.map(|server| stored("a server", server)).transpose()?;
        Ok((tunnel.id, Grant { tunnel, askers, older }))
    };
    rows.iter().map(grant).collect()
}

/// That a claimed tunnel's listener was seen.
#[derive(Debug, Clone)]
pub(super) struct Activation {
    tunnel: TunnelId,
    epoch: Epoch,
    landed_ago: Option<Duration>,
}

/// Marks claimed tunnels as active; in their order.
async fn activate_all(store: &Store, calls: &[Activation]) -> Result<Vec<Activated>, StoreError> {
    let ids: Vec<uuid::Uuid> = calls.iter().map(|call| call.tunnel.uuid()).collect();
    let epochs: Vec<i64> = calls.iter().map(|call| counter(call.epoch.0)).collect();
    let landed: Vec<Option<f64>> = calls
        .iter()
        .map(|call| call.landed_ago.map(|ago| ago.as_secs_f64()))
        .collect();
    let rows = sqlx::query(concat!(
        "SELECT ",
        tunnel_columns!(),
        stage_columns!(),
        asker_column!(),
        " FROM take_listeners($1, $2, $3) t"
    ))
    .bind(&ids)
    .bind(&epochs)
    .bind(&landed)
    .fetch_all(&store.pool)
    .await?;
    let mut found = HashMap::new();
    for row in &rows {
        let (tunnel, times) = traced(row)?;
        let askers = askers(row, &tunnel)?;
        found.insert((tunnel.id, tunnel.epoch), (tunnel, times, askers));
    }
    Ok(calls
        .iter()
        .map(|call| found.remove(&(call.tunnel, call.epoch)))
        .collect())
}

/// Says why a tunnel cannot be claimed; another device's tunnel looks like none.
async fn refusal(store: &Store, device: &DeviceId, tunnel: TunnelId) -> Result<Failure, StoreError> {
    let row = sqlx::query(concat!(
        "SELECT ",
        tunnel_columns!(),
        " FROM tunnels t WHERE t.id = $1 AND t.device_id = $2"
    ))
    .bind(tunnel.uuid())
    .bind(device.as_str())
    .fetch_optional(&store.pool)
    .await?;
    let Some(row) = row else {
        return Ok(Failure::new(
            FailureKind::Denied,
            format!("{device} has no tunnel {tunnel}"),
        ));
    };
    let found = read(&row)?;
    Ok(match (found.state, found.failure) {
        (TunnelState::Closed, _) => Failure::new(FailureKind::UnknownTunnel, format!("the tunnel {tunnel} is closed")),
        (TunnelState::Failed, Some(failure)) => failure,
        _ => Failure::new(
            FailureKind::Deadline,
            format!("the tunnel {tunnel} is past its deadline"),
        ),
    })
}
