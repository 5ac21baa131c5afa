//! (server, port) -> tunnel: claims, releases and rests, fenced by the tunnel's epoch.

use std::collections::HashMap;
use std::time::Duration;

use rssh_proto::payload::TunnelState;
use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, ServerId, TunnelId};
use sqlx::postgres::PgConnection;
use sqlx::{Postgres, Transaction};

use super::row::{
    Asker, Times, Tunnel, asker_column, live, quickly, read, stage_columns, traced, tunnel_columns, with_askers,
};
use super::tunnels::reconnecting;
use super::{LOGIN_PATIENCE, PATIENCE, Store, StoreError, counter, port, stored, uncounter};
use crate::process::Process;
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

/// The process that owns a lease's listener, told apart from a later one with its id and from another boot's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionMark {
    pub process: Process,
    pub boot_id: String,
}

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

/// A lease from before this process started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedLease {
    pub port: u16,
    pub tunnel: TunnelId,
    pub epoch: Epoch,
    pub device: DeviceId,
    pub mark: SessionMark,
    pub active: bool,
    pub ttl_s: u32,
    pub idle_s: Option<u32>,
}

/// A port that rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestingPort {
    pub port: u16,
    /// For how long still, in milliseconds.
    pub for_ms: u32,
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

    /// Takes a lease back when its session has ended; the port rests, and a tunnel that is not over waits for its
    /// device. Returns whether it does.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn release(
        &self,
        server: &ServerId,
        leased: u16,
        tunnel: TunnelId,
        epoch: Epoch,
        rest_s: u32,
    ) -> Result<bool, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let waits = reconnecting(&mut tx, tunnel, epoch).await?;
            sqlx::query(
                "UPDATE leases SET released_at = coalesce(released_at, clock_timestamp()), evict = false,
                     free_after = coalesce(free_after, greatest(clock_timestamp() + $5 * interval '1 s', named_until))
                 WHERE server_id = $1 AND port = $2 AND tunnel_id = $3 AND epoch = $4",
            )
            .bind(server.as_str())
            .bind(i32::from(leased))
            .bind(tunnel.uuid())
            .bind(counter(epoch.0))
            .bind(f64::from(rest_s))
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(waits)
        })
        .await
    }

    /// This server's leases whose sessions others want ended, or that lost their tunnel: (tunnel, epoch).
    ///
    /// # Errors
    /// When the database is away.
    pub async fn evictions(&self, server: &ServerId) -> Result<Vec<(TunnelId, Epoch)>, StoreError> {
        self.within(async {
            let rows: Vec<(uuid::Uuid, i64)> =
                sqlx::query_as("SELECT tunnel_id, epoch FROM leases WHERE server_id = $1 AND evict")
                    .bind(server.as_str())
                    .fetch_all(&self.pool)
                    .await?;
            Ok(rows
                .into_iter()
                .map(|(tunnel, epoch)| (tunnel.into(), Epoch(uncounter(epoch))))
                .collect())
        })
        .await
    }

    /// This server's live leases, for adoption after a restart.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn leases(&self, server: &ServerId) -> Result<Vec<AdoptedLease>, StoreError> {
        type Row = (i32, uuid::Uuid, i64, String, i32, i64, String, String, i64, Option<i32>);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT l.port, l.tunnel_id, l.epoch, t.device_id, l.session_pid, l.session_start, l.boot_id, t.state,
                    greatest(extract(epoch FROM t.expires_at - clock_timestamp()), 0)::bigint, t.idle_s
             FROM leases l JOIN tunnels t ON t.id = l.tunnel_id
             WHERE l.server_id = $1 AND l.released_at IS NULL",
        )
        .bind(server.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(
                |(leased, tunnel, epoch, device, pid, start, boot_id, state, ttl_s, idle_s)| {
                    Ok(AdoptedLease {
                        port: port(leased)?,
                        tunnel: tunnel.into(),
                        epoch: Epoch(uncounter(epoch)),
                        device: stored("a device", &device)?,
                        mark: SessionMark {
                            process: Process {
                                pid,
                                start: uncounter(start),
                            },
                            boot_id,
                        },
                        active: state == "active",
                        ttl_s: u32::try_from(ttl_s).unwrap_or(u32::MAX),
                        idle_s: idle_s.and_then(|seconds| u32::try_from(seconds).ok()),
                    })
                },
            )
            .collect()
    }

    /// This server's ports that rest, for keeping them out of use after a restart.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn resting(&self, server: &ServerId) -> Result<Vec<RestingPort>, StoreError> {
        let rows: Vec<(i32, i64)> = sqlx::query_as(
            "SELECT port, (extract(epoch FROM free_after - clock_timestamp()) * 1000)::bigint
             FROM leases WHERE server_id = $1 AND free_after > clock_timestamp()",
        )
        .bind(server.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|(resting, ms)| {
                Ok(RestingPort {
                    port: port(resting)?,
                    for_ms: u32::try_from(ms).unwrap_or(u32::MAX),
                })
            })
            .collect()
    }
}

/// Whose keys these are, and which tunnels of each device wait for a landing; in their order.
async fn landings(store: &Store, calls: &[(ServerId, PublicKey)]) -> Result<Vec<Landing>, StoreError> {
    let servers: Vec<&str> = calls.iter().map(|(server, _)| server.as_str()).collect();
    let keys: Vec<&str> = calls.iter().map(|(_, key)| key.as_str()).collect();
    // A live tunnel may land again at any time: its device's link may have changed before its server noticed.
    let rows: Vec<(i64, String, uuid::Uuid, String, Option<i32>)> = sqlx::query_as(concat!(
        "SELECT n.at, found.id, found.tunnel, found.state, found.wish FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS n(server, key, at),
         LATERAL (
             SELECT d.id, t.id AS tunnel, t.state, CASE WHEN t.server_id = n.server THEN t.port ELSE t.remote_port END AS wish
             FROM devices d JOIN tunnels t ON t.device_id = d.id
             WHERE (d.ssh_key = n.key OR (d.ssh_key_before = n.key AND d.ssh_key_before_until > clock_timestamp()))
               AND NOT EXISTS (SELECT FROM identities i WHERE i.name = d.id AND i.revoked_at IS NOT NULL)
               AND (d.quarantined_until IS NULL OR d.quarantined_until < clock_timestamp())
               AND t.expires_at > clock_timestamp()
               AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp()) AND t.state IN ",
        live!(),
        // Whether there is one or more is all that matters, and whether more than one waits.
        " ORDER BY t.state = 'active' LIMIT 2) found"
    ))
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

/// Grants claims, all in one step; those that stand in each other's way have to come one by one.
async fn claim_all(store: &Store, calls: &[Claim]) -> Result<Vec<ClaimOutcome>, StoreError> {
    let mut wanted: Vec<TunnelId> = calls.iter().map(|call| call.tunnel).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.len() < calls.len() {
        return Err(StoreError::Apart);
    }
    let mut tx = store.pool.begin().await?;
    let mut grants = take_tunnels(&mut tx, calls).await?;
    let granted: Vec<&Claim> = calls.iter().filter(|call| grants.contains_key(&call.tunnel)).collect();
    end_older(&mut tx, &granted, &mut grants).await?;
    if write_leases(&mut tx, &granted, &grants).await? < granted.len() as u64 {
        let [only] = calls else { return Err(StoreError::Apart) };
        let message = format!("port {} of {} is leased or resting; try again", only.port, only.server);
        return Ok(vec![ClaimOutcome::Refused(Failure::new(FailureKind::Busy, message))]);
    }
    let mut outcomes = Vec::with_capacity(calls.len());
    for call in calls {
        outcomes.push(match grants.remove(&call.tunnel) {
            Some(grant) => ClaimOutcome::Granted(Box::new(grant)),
            None => ClaimOutcome::Refused(refusal(&mut tx, &call.device, call.tunnel).await?),
        });
    }
    if granted.is_empty() {
        tx.rollback().await?;
    } else {
        tx.commit().await?;
    }
    Ok(outcomes)
}

/// Marks the tunnels that may be claimed as claimed.
async fn take_tunnels(
    tx: &mut Transaction<'_, Postgres>,
    calls: &[Claim],
) -> Result<HashMap<TunnelId, Grant>, StoreError> {
    let ids: Vec<uuid::Uuid> = calls.iter().map(|call| call.tunnel.uuid()).collect();
    let devices: Vec<&str> = calls.iter().map(|call| call.device.as_str()).collect();
    let servers: Vec<&str> = calls.iter().map(|call| call.server.as_str()).collect();
    let ports: Vec<i32> = calls.iter().map(|call| i32::from(call.port)).collect();
    let rows = sqlx::query(concat!(
        "WITH asked AS MATERIALIZED (
             SELECT t.id, n.server, n.port
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::integer[]) AS n(id, device, server, port)
                 JOIN tunnels t ON t.id = n.id
             WHERE t.device_id = n.device AND t.expires_at > clock_timestamp()
               AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp()) AND t.state IN ",
        live!(),
        "    ORDER BY t.id FOR NO KEY UPDATE OF t)
         UPDATE tunnels t SET epoch = t.epoch + 1, state = 'claimed', server_id = asked.server, port = asked.port,
             claimed_at = clock_timestamp(), answered_at = coalesce(t.answered_at, clock_timestamp())
         FROM asked WHERE t.id = asked.id RETURNING ",
        tunnel_columns!(),
        asker_column!()
    ))
    .bind(&ids)
    .bind(&devices)
    .bind(&servers)
    .bind(&ports)
    .fetch_all(&mut **tx)
    .await?;
    let grant = |row| {
        let (tunnel, askers) = with_askers(row)?;
        let older = None;
        Ok((tunnel.id, Grant { tunnel, askers, older }))
    };
    rows.iter().map(grant).collect()
}

/// Takes the older leases of claimed tunnels away.
async fn end_older(
    tx: &mut Transaction<'_, Postgres>,
    granted: &[&Claim],
    grants: &mut HashMap<TunnelId, Grant>,
) -> Result<(), StoreError> {
    // A tunnel that is claimed for the first time has none.
    let again = |call: &&&Claim| {
        grants
            .get(&call.tunnel)
            .is_some_and(|grant| grant.tunnel.epoch > Epoch::default().next())
    };
    let (ids, rests): (Vec<uuid::Uuid>, Vec<f64>) = granted
        .iter()
        .filter(again)
        .map(|call| (call.tunnel.uuid(), f64::from(call.rest_s)))
        .unzip();
    if ids.is_empty() {
        return Ok(());
    }
    let rows: Vec<(uuid::Uuid, String)> = sqlx::query_as(
        "UPDATE leases l SET released_at = clock_timestamp(), evict = true,
             free_after = greatest(clock_timestamp() + n.rest_s * interval '1 s', l.named_until)
         FROM unnest($1::uuid[], $2::float8[]) AS n(tunnel_id, rest_s)
         WHERE l.tunnel_id = n.tunnel_id AND l.released_at IS NULL RETURNING l.tunnel_id, l.server_id",
    )
    .bind(&ids)
    .bind(&rests)
    .fetch_all(&mut **tx)
    .await?;
    for (tunnel, server) in rows {
        if let Some(grant) = grants.get_mut(&tunnel.into()) {
            grant.older = Some(stored("a server", &server)?);
        }
    }
    Ok(())
}

/// Writes the leases of claimed tunnels; returns how many ports were free for that.
async fn write_leases(
    tx: &mut Transaction<'_, Postgres>,
    granted: &[&Claim],
    grants: &HashMap<TunnelId, Grant>,
) -> Result<u64, StoreError> {
    if granted.is_empty() {
        return Ok(0);
    }
    fn all<T>(granted: &[&Claim], value: impl Fn(&Claim) -> T) -> Vec<T> {
        granted.iter().map(|call| value(call)).collect()
    }
    let epoch = |call: &Claim| {
        grants
            .get(&call.tunnel)
            .map_or(0, |grant| counter(grant.tunnel.epoch.0))
    };
    // A resting port may go back to the tunnel that had it: its old names lead to the same device and target.
    let inserted = sqlx::query(
        "INSERT INTO leases AS l (server_id, port, tunnel_id, epoch, session_pid, session_start, boot_id)
         SELECT * FROM unnest($1::text[], $2::integer[], $3::uuid[], $4::bigint[], $5::integer[], $6::bigint[], $7::text[])
             AS n(server_id, port, tunnel_id, epoch, pid, start, boot_id) ORDER BY n.server_id, n.port
         ON CONFLICT (server_id, port) DO UPDATE SET
             tunnel_id = excluded.tunnel_id, epoch = excluded.epoch, session_pid = excluded.session_pid,
             session_start = excluded.session_start, boot_id = excluded.boot_id, claimed_at = clock_timestamp(),
             released_at = NULL, free_after = NULL, evict = false,
             named_until = CASE WHEN l.tunnel_id = excluded.tunnel_id THEN l.named_until END
         WHERE l.released_at IS NOT NULL AND (l.free_after <= clock_timestamp() OR l.tunnel_id = excluded.tunnel_id)",
    )
    .bind(all(granted, |call| call.server.to_string()))
    .bind(all(granted, |call| i32::from(call.port)))
    .bind(all(granted, |call| call.tunnel.uuid()))
    .bind(all(granted, epoch))
    .bind(all(granted, |call| call.mark.process.pid))
    .bind(all(granted, |call| counter(call.mark.process.start)))
    .bind(all(granted, |call| call.mark.boot_id.clone()))
    .execute(&mut **tx)
    .await?;
    Ok(inserted.rows_affected())
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
    // Losing this on a crash loses nothing: whoever adopts the session sees its listener again.
    let rows = sqlx::query(concat!(
        "WITH asked AS MATERIALIZED (
             SELECT t.id, n.landed_ago
             FROM unnest($1::uuid[], $2::bigint[], $3::float8[]) AS n(id, epoch, landed_ago) JOIN tunnels t ON t.id = n.id
             WHERE t.epoch = n.epoch AND t.state IN ('claimed', 'active') ORDER BY t.id FOR NO KEY UPDATE OF t)
         UPDATE tunnels t SET state = 'active', active_at = clock_timestamp(),
             landed_at = coalesce(clock_timestamp() - asked.landed_ago * interval '1 s', t.landed_at)
         FROM asked WHERE t.id = asked.id AND ",
        quickly!(),
        " RETURNING ",
        tunnel_columns!(),
        stage_columns!(),
        asker_column!()
    ))
    .bind(&ids)
    .bind(&epochs)
    .bind(&landed)
    .fetch_all(&store.pool)
    .await?;
    let mut found = HashMap::new();
    for row in &rows {
        let (tunnel, times) = traced(row)?;
        let (_, askers) = with_askers(row)?;
        found.insert((tunnel.id, tunnel.epoch), (tunnel, times, askers));
    }
    Ok(calls
        .iter()
        .map(|call| found.remove(&(call.tunnel, call.epoch)))
        .collect())
}

/// Says why a tunnel cannot be claimed; another device's tunnel looks like none.
async fn refusal(connection: &mut PgConnection, device: &DeviceId, tunnel: TunnelId) -> Result<Failure, StoreError> {
    let row = sqlx::query(concat!(
        "SELECT ",
        tunnel_columns!(),
        " FROM tunnels t WHERE t.id = $1 AND t.device_id = $2"
    ))
    .bind(tunnel.uuid())
    .bind(device.as_str())
    .fetch_optional(connection)
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
