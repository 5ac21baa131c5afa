//! (server, port) -> tunnel: releases, rests, and what is held, fenced by the tunnel's epoch.

use rssh_proto::{DeviceId, Epoch, ServerId, TunnelId};

use super::tunnels::reconnecting;
use super::{Store, StoreError, counter, port, stored, uncounter};
use crate::process::Process;

/// The process that owns a lease's listener, told apart from a later one with its id and from another boot's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionMark {
    pub process: Process,
    pub boot_id: String,
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
