//! (server, port) -> tunnel: claims, releases and rests, fenced by the tunnel's epoch.

use std::time::Duration;

use rssh_proto::payload::TunnelState;
use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, ServerId, TunnelId};
use sqlx::postgres::PgConnection;
use sqlx::{Postgres, Transaction};

use super::tunnels::{Asker, Times, Tunnel, askers, live, read, reconnecting, stage_columns, traced, tunnel_columns};
use super::{LOGIN_PATIENCE, Store, StoreError, counter, port, stored, uncounter};
use crate::process::Process;
use crate::ssh_keygen::PublicKey;

/// A tunnel that a device's login may be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The port wished for: its last one on this server, or the asker's hint.
    pub port: Option<u16>,
}

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
        self.within_time(LOGIN_PATIENCE, async {
            // A live tunnel may land again at any time: its device's link may have changed before its server noticed.
            let rows: Vec<(String, Option<i32>)> = sqlx::query_as(concat!(
                "SELECT d.id, CASE WHEN t.server_id = $2 THEN t.port ELSE t.remote_port END
                 FROM devices d JOIN tunnels t ON t.device_id = d.id
                 WHERE (d.ssh_key = $1 OR (d.ssh_key_before = $1 AND d.ssh_key_before_until > clock_timestamp()))
                   AND NOT EXISTS (SELECT FROM identities i WHERE i.name = d.id AND i.revoked_at IS NOT NULL)
                   AND (d.quarantined_until IS NULL OR d.quarantined_until < clock_timestamp())
                   AND t.expires_at > clock_timestamp()
                   AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp()) AND t.state IN ",
                live!(),
                " ORDER BY t.state = 'active', t.created_at LIMIT 64"
            ))
            .bind(key.as_str())
            .bind(server.as_str())
            .fetch_all(&self.pool)
            .await?;
            let Some((device, _)) = rows.first() else {
                return Ok(None);
            };
            let device = stored("a device", device)?;
            let candidates = rows
                .iter()
                .map(|(_, wish)| {
                    Ok(Candidate {
                        port: wish.map(port).transpose()?,
                    })
                })
                .collect::<Result<_, StoreError>>()?;
            Ok(Some((device, candidates)))
        })
        .await
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
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let outcome = claim(&mut tx, server, leased, device, tunnel, mark, rest_s).await?;
            if matches!(outcome, ClaimOutcome::Granted(_)) {
                tx.commit().await?;
            }
            Ok(outcome)
        })
        .await
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
        self.within(async {
            let mut tx = self.pool.begin().await?;
            // Losing this on a crash loses nothing: whoever adopts the session sees its listener again.
            sqlx::query("SET LOCAL synchronous_commit = off")
                .execute(&mut *tx)
                .await?;
            let row = sqlx::query(concat!(
                "UPDATE tunnels t SET state = 'active', active_at = clock_timestamp(),
                     landed_at = coalesce(clock_timestamp() - $3 * interval '1 s', landed_at)
                 WHERE t.id = $1 AND t.epoch = $2 AND t.state IN ('claimed', 'active') RETURNING ",
                tunnel_columns!(),
                stage_columns!()
            ))
            .bind(tunnel.uuid())
            .bind(counter(epoch.0))
            .bind(landed_ago.map(|ago| ago.as_secs_f64()))
            .fetch_optional(&mut *tx)
            .await?;
            let Some(row) = row else { return Ok(None) };
            let (tunnel, times) = traced(&row)?;
            let askers = askers(&mut tx, &tunnel).await?;
            tx.commit().await?;
            Ok(Some((tunnel, times, askers)))
        })
        .await
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

async fn claim(
    tx: &mut Transaction<'_, Postgres>,
    server: &ServerId,
    leased: u16,
    device: &DeviceId,
    tunnel: TunnelId,
    mark: &SessionMark,
    rest_s: u32,
) -> Result<ClaimOutcome, StoreError> {
    let row = sqlx::query(concat!(
        "UPDATE tunnels t SET epoch = t.epoch + 1, state = 'claimed', server_id = $3, port = $4,
             claimed_at = clock_timestamp(), answered_at = coalesce(t.answered_at, clock_timestamp())
         WHERE t.id = $1 AND t.device_id = $2 AND t.expires_at > clock_timestamp()
           AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp()) AND t.state IN ",
        live!(),
        " RETURNING ",
        tunnel_columns!()
    ))
    .bind(tunnel.uuid())
    .bind(device.as_str())
    .bind(server.as_str())
    .bind(i32::from(leased))
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else {
        return Ok(ClaimOutcome::Refused(refusal(tx, device, tunnel).await?));
    };
    let granted = read(&row)?;

    let older: Option<(String,)> = sqlx::query_as(
        "UPDATE leases SET released_at = clock_timestamp(), evict = true,
             free_after = greatest(clock_timestamp() + $2 * interval '1 s', named_until)
         WHERE tunnel_id = $1 AND released_at IS NULL RETURNING server_id",
    )
    .bind(tunnel.uuid())
    .bind(f64::from(rest_s))
    .fetch_optional(&mut **tx)
    .await?;

    // A resting port may go back to the tunnel that had it: its old names lead to the same device and target.
    let inserted = sqlx::query(
        "INSERT INTO leases AS l (server_id, port, tunnel_id, epoch, session_pid, session_start, boot_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (server_id, port) DO UPDATE SET
             tunnel_id = excluded.tunnel_id, epoch = excluded.epoch, session_pid = excluded.session_pid,
             session_start = excluded.session_start, boot_id = excluded.boot_id, claimed_at = clock_timestamp(),
             released_at = NULL, free_after = NULL, evict = false,
             named_until = CASE WHEN l.tunnel_id = excluded.tunnel_id THEN l.named_until END
         WHERE l.released_at IS NOT NULL AND (l.free_after <= clock_timestamp() OR l.tunnel_id = excluded.tunnel_id)",
    )
    .bind(server.as_str())
    .bind(i32::from(leased))
    .bind(tunnel.uuid())
    .bind(counter(granted.epoch.0))
    .bind(mark.process.pid)
    .bind(counter(mark.process.start))
    .bind(&mark.boot_id)
    .execute(&mut **tx)
    .await?;
    if inserted.rows_affected() == 0 {
        let message = format!("port {leased} of {server} is leased or resting; try again");
        return Ok(ClaimOutcome::Refused(Failure::new(FailureKind::Busy, message)));
    }
    let askers = askers(tx, &granted).await?;
    Ok(ClaimOutcome::Granted(Box::new(Grant {
        tunnel: granted,
        askers,
        older: older.map(|(server,)| stored("a server", &server)).transpose()?,
    })))
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
