//! Tunnels: what users ask of them, and their way to an end.

use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, InstanceId, Target, TunnelId, UserId};
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::row::{Asker, Times, Tunnel, asker_column, live, read, stage_columns, traced, tunnel_columns, with_askers};
use super::{PATIENCE, Store, StoreError, counter};

/// Whether the grants still allow the user's tunnel: who may not open it may not read of it either.
macro_rules! permitted {
    () => {
        "EXISTS (SELECT FROM permits(t.user_id, t.device_id, t.target))"
    };
}

/// The name of a failure's kind in the database.
fn kind_name(kind: FailureKind) -> String {
    serde_json::to_value(kind)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// An acknowledgement of a tunnel, by an agent of its device.
pub(super) type Acknowledgement = (TunnelId, DeviceId, InstanceId);

/// What became of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Another agent spoke for the device before.
    pub by_another: bool,
    /// The tunnel and whom to tell, when there was something to note.
    pub told: Option<(Tunnel, Vec<Asker>)>,
}

impl Store {
    /// Finds a tunnel of a user.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn tunnel_of(&self, user: &UserId, tunnel: TunnelId) -> Result<Option<Tunnel>, StoreError> {
        self.within(async {
            let row = sqlx::query(concat!(
                "SELECT ",
                tunnel_columns!(),
                " FROM tunnels t WHERE t.id = $1 AND t.user_id = $2 AND ",
                permitted!()
            ))
            .bind(tunnel.uuid())
            .bind(user.as_str())
            .fetch_optional(&self.pool)
            .await?;
            row.as_ref().map(read).transpose()
        })
        .await
    }

    /// Finds a tunnel of a user, live or over, and when it reached each stage.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn trace_of(&self, user: &UserId, tunnel: TunnelId) -> Result<Option<(Tunnel, Times)>, StoreError> {
        self.within(async {
            let row = sqlx::query(concat!(
                "SELECT ",
                tunnel_columns!(),
                stage_columns!(),
                " FROM tunnels t WHERE t.id = $1 AND t.user_id = $2 AND ",
                permitted!()
            ))
            .bind(tunnel.uuid())
            .bind(user.as_str())
            .fetch_optional(&self.pool)
            .await?;
            row.as_ref().map(traced).transpose()
        })
        .await
    }

    /// The same of the user's latest tunnel to a device, or to one of its targets.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn latest_of(
        &self,
        user: &UserId,
        device: &DeviceId,
        target: Option<&Target>,
    ) -> Result<Option<(Tunnel, Times)>, StoreError> {
        self.within(async {
            let row = sqlx::query(concat!(
                "SELECT ",
                tunnel_columns!(),
                stage_columns!(),
                " FROM tunnels t WHERE t.user_id = $1 AND t.device_id = $2 AND ($3::text IS NULL OR t.target = $3)
                   AND ",
                permitted!(),
                " ORDER BY t.created_at DESC LIMIT 1"
            ))
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(target.map(ToString::to_string))
            .fetch_optional(&self.pool)
            .await?;
            row.as_ref().map(traced).transpose()
        })
        .await
    }

    /// The same of a user's tunnels that are live or ended within the last minute, or of one of them; at most 1,000.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn traces_of(&self, user: &UserId, only: Option<TunnelId>) -> Result<Vec<(Tunnel, Times)>, StoreError> {
        self.within(async {
            let rows = sqlx::query(concat!(
                "SELECT ",
                tunnel_columns!(),
                stage_columns!(),
                " FROM tunnels t WHERE t.user_id = $1 AND ($2::uuid IS NULL OR t.id = $2)
                   AND (t.ended_at IS NULL OR t.ended_at > clock_timestamp() - interval '1 min')
                   AND (t.state IN ",
                live!(),
                " OR t.ended_at IS NOT NULL) ORDER BY t.created_at LIMIT 1000"
            ))
            .bind(user.as_str())
            .bind(only.map(TunnelId::uuid))
            .fetch_all(&self.pool)
            .await?;
            rows.iter().map(traced).collect()
        })
        .await
    }

    /// Lists a user's live tunnels, the oldest first, at most 1,000.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn tunnels_of(&self, user: &UserId) -> Result<Vec<Tunnel>, StoreError> {
        self.within(async {
            let rows = sqlx::query(concat!(
                "SELECT ",
                tunnel_columns!(),
                " FROM tunnels t WHERE t.user_id = $1 AND t.state IN ",
                live!(),
                " AND ",
                permitted!(),
                " ORDER BY t.created_at LIMIT 1000"
            ))
            .bind(user.as_str())
            .fetch_all(&self.pool)
            .await?;
            rows.iter().map(read).collect()
        })
        .await
    }

    /// Closes a live tunnel for good: expired, idle, or over on the device. With an epoch, only if it has not landed
    /// again since. Returns whether it was closed.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn end(&self, tunnel: TunnelId, epoch: Option<Epoch>) -> Result<bool, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let ended = end(&mut tx, tunnel, epoch).await?;
            tx.commit().await?;
            Ok(ended)
        })
        .await
    }

    /// Closes a live tunnel because its device says that it is over there. Returns whether it was live.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn end_on(&self, tunnel: TunnelId, device: &DeviceId) -> Result<bool, StoreError> {
        let theirs: Option<(i32,)> = self
            .within(async {
                Ok(sqlx::query_as("SELECT 1 FROM tunnels WHERE id = $1 AND device_id = $2")
                    .bind(tunnel.uuid())
                    .bind(device.as_str())
                    .fetch_optional(&self.pool)
                    .await?)
            })
            .await?;
        match theirs {
            Some(_) => self.end(tunnel, None).await,
            None => Ok(false),
        }
    }

    /// A tunnel whose device has not acknowledged it, nor landed.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn unanswered(&self, tunnel: TunnelId) -> Result<Option<Tunnel>, StoreError> {
        let store = self.clone();
        let run = move |calls: Vec<TunnelId>| {
            let store = store.clone();
            async move { store.within(unanswered_of(&store, &calls)).await }
        };
        self.groups.unanswered.ask(PATIENCE, tunnel, run).await
    }

    /// Notes that the device has acknowledged a tunnel, and looks which of its agents says so.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn acknowledged(
        &self,
        tunnel: TunnelId,
        device: &DeviceId,
        instance: &InstanceId,
    ) -> Result<Acknowledged, StoreError> {
        let call = (tunnel, device.clone(), instance.clone());
        let store = self.clone();
        let run = move |calls: Vec<Acknowledgement>| {
            let store = store.clone();
            async move { store.within(acknowledge_all(&store, &calls)).await }
        };
        self.groups.acknowledgements.ask(PATIENCE, call, run).await
    }

    /// Ends a tunnel that has not become active with a named failure; `None` when it is past that.
    ///
    /// `unanswered` restricts it to tunnels that the device has not acknowledged.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn fail(
        &self,
        tunnel: TunnelId,
        device: &DeviceId,
        failure: &Failure,
        unanswered: bool,
    ) -> Result<Option<(Tunnel, Vec<Asker>)>, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let row = sqlx::query(concat!(
                "UPDATE tunnels t SET state = 'failed', ended_at = clock_timestamp(), failure_kind = $3, failure_message = $4,
                     failed_at = clock_timestamp()
                 WHERE t.id = $1 AND t.device_id = $2 AND t.state IN ('requested', 'claimed', 'reconnecting')
                   AND (NOT $5 OR (t.state = 'requested' AND t.answered_at IS NULL)) RETURNING ",
                tunnel_columns!(),
                asker_column!()
            ))
            .bind(tunnel.uuid())
            .bind(device.as_str())
            .bind(kind_name(failure.kind))
            .bind(failure.message())
            .bind(unanswered)
            .fetch_optional(&mut *tx)
            .await?;
            evict(&mut tx, tunnel).await?;
            let told = row.as_ref().map(with_askers).transpose()?;
            tx.commit().await?;
            Ok(told)
        })
        .await
    }

    /// Notes what the device of an active tunnel says of its target; whoever asks for a name in the next seconds hears it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn note_fault(&self, tunnel: TunnelId, device: &DeviceId, failure: &Failure) -> Result<(), StoreError> {
        self.within(async {
            sqlx::query(
                "UPDATE tunnels SET failure_kind = $3, failure_message = $4, failed_at = clock_timestamp()
                 WHERE id = $1 AND device_id = $2 AND state = 'active'",
            )
            .bind(tunnel.uuid())
            .bind(device.as_str())
            .bind(kind_name(failure.kind))
            .bind(failure.message())
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Ends what is past its deadline or its life, a batch at a time: requests nobody waits for, tunnels that expired.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn sweep(&self) -> Result<Vec<Tunnel>, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let rows = sqlx::query(concat!(
                "WITH unheard AS (
                     SELECT id FROM tunnels WHERE state = 'requested' AND deadline_at <= clock_timestamp()
                     ORDER BY deadline_at LIMIT 100 FOR UPDATE SKIP LOCKED),
                 expired AS (
                     SELECT id FROM tunnels WHERE expires_at <= clock_timestamp() AND state IN ",
                live!(),
                "    ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED)
                 UPDATE tunnels t SET
                     state = CASE WHEN t.state = 'requested' THEN 'failed' ELSE 'closed' END,
                     failure_kind = CASE WHEN t.state = 'requested' THEN 'deadline' END,
                     failure_message = 'the request''s deadline passed before the device had landed',
                     ended_at = clock_timestamp()
                 WHERE t.id IN (SELECT id FROM unheard UNION SELECT id FROM expired)
                 RETURNING ",
                tunnel_columns!()
            ))
            .fetch_all(&mut *tx)
            .await?;
            let tunnels: Vec<Tunnel> = rows.iter().map(read).collect::<Result<_, _>>()?;
            for tunnel in &tunnels {
                evict(&mut tx, tunnel.id).await?;
            }
            tx.commit().await?;
            Ok(tunnels)
        })
        .await
    }

    /// When a device was last heard of: whether it is online, and how many seconds ago.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn last_seen(&self, device: &DeviceId) -> Result<(bool, Option<i64>), StoreError> {
        self.within(async {
            Ok(sqlx::query_as(
                "SELECT online, extract(epoch FROM clock_timestamp() - last_seen)::bigint FROM devices WHERE id = $1",
            )
            .bind(device.as_str())
            .fetch_optional(&self.pool)
            .await?
            .unwrap_or((false, None)))
        })
        .await
    }
}

/// Those of some tunnels that no device has acknowledged; in their order.
async fn unanswered_of(store: &Store, calls: &[TunnelId]) -> Result<Vec<Option<Tunnel>>, StoreError> {
    let ids: Vec<uuid::Uuid> = calls.iter().map(|tunnel| tunnel.uuid()).collect();
    let rows = sqlx::query(concat!(
        "SELECT ",
        tunnel_columns!(),
        " FROM tunnels t WHERE t.id = ANY($1) AND t.state = 'requested' AND t.answered_at IS NULL"
    ))
    .bind(&ids)
    .fetch_all(&store.pool)
    .await?;
    let found: Vec<Tunnel> = rows.iter().map(read).collect::<Result<_, _>>()?;
    let one = |id: &TunnelId| found.iter().find(|tunnel| tunnel.id == *id).cloned();
    Ok(calls.iter().map(one).collect())
}

/// Notes acknowledgements, each of a tunnel by its device; in their order.
async fn acknowledge_all(store: &Store, calls: &[Acknowledgement]) -> Result<Vec<Acknowledged>, StoreError> {
    let ids: Vec<uuid::Uuid> = calls.iter().map(|(tunnel, ..)| tunnel.uuid()).collect();
    let devices: Vec<&str> = calls.iter().map(|(_, device, _)| device.as_str()).collect();
    let instances: Vec<&str> = calls.iter().map(|(.., instance)| instance.as_str()).collect();
    let rows = sqlx::query(concat!(
        "SELECT c.another, ",
        tunnel_columns!(),
        asker_column!(),
        " FROM take_acknowledgements($1, $2, $3) c, LATERAL (SELECT (c.tunnel).*) t"
    ))
    .bind(&ids)
    .bind(&devices)
    .bind(&instances)
    .fetch_all(&store.pool)
    .await?;
    let acknowledged = |row: &PgRow| {
        let noted = row.try_get::<Option<uuid::Uuid>, _>("id")?.is_some();
        Ok(Acknowledged {
            by_another: row.try_get("another")?,
            told: noted.then(|| with_askers(row)).transpose()?,
        })
    };
    rows.iter().map(acknowledged).collect()
}

/// Closes a live tunnel and asks for the end of its session.
pub(super) async fn end(
    connection: &mut PgConnection,
    tunnel: TunnelId,
    epoch: Option<Epoch>,
) -> Result<bool, StoreError> {
    let ended = sqlx::query(concat!(
        "UPDATE tunnels SET state = 'closed', ended_at = clock_timestamp()
         WHERE id = $1 AND ($2::bigint IS NULL OR epoch = $2) AND state IN ",
        live!()
    ))
    .bind(tunnel.uuid())
    .bind(epoch.map(|epoch| counter(epoch.0)))
    .execute(&mut *connection)
    .await?;
    evict(connection, tunnel).await?;
    Ok(ended.rows_affected() > 0)
}

/// Asks the server that holds a tunnel that is over to end its session.
async fn evict(connection: &mut PgConnection, tunnel: TunnelId) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE leases SET evict = true WHERE tunnel_id = $1 AND released_at IS NULL
             AND EXISTS (SELECT 1 FROM tunnels WHERE id = $1 AND state IN ('closed', 'failed'))",
    )
    .bind(tunnel.uuid())
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks an active tunnel as waiting for its device, unless it has been claimed again since.
pub(super) async fn reconnecting(
    connection: &mut PgConnection,
    tunnel: TunnelId,
    epoch: Epoch,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE tunnels SET state = 'reconnecting' WHERE id = $1 AND epoch = $2 AND state IN ('claimed', 'active')",
    )
    .bind(tunnel.uuid())
    .bind(counter(epoch.0))
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Closes the live tunnels of some users, or to a device, that no grant allows any more, and asks for the end of their
/// sessions; returns how many. The users or the device are locked.
pub(super) async fn withdraw(
    connection: &mut PgConnection,
    users: Option<&[String]>,
    device: Option<&DeviceId>,
) -> Result<u64, StoreError> {
    let closed: Vec<(uuid::Uuid,)> = sqlx::query_as(concat!(
        "WITH gone AS (
             SELECT t.id FROM tunnels t
             WHERE ($1::text[] IS NULL OR t.user_id = ANY($1)) AND ($2::text IS NULL OR t.device_id = $2)
               AND t.state IN ",
        live!(),
        " AND NOT ",
        permitted!(),
        " ORDER BY t.id FOR UPDATE)
         UPDATE tunnels SET state = 'closed', ended_at = clock_timestamp() WHERE id IN (SELECT id FROM gone)
         RETURNING id"
    ))
    .bind(users)
    .bind(device.map(DeviceId::as_str))
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<uuid::Uuid> = closed.into_iter().map(|(id,)| id).collect();
    sqlx::query("UPDATE leases SET evict = true WHERE tunnel_id = ANY($1) AND released_at IS NULL")
        .bind(&ids)
        .execute(connection)
        .await?;
    Ok(ids.len() as u64)
}
