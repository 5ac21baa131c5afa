//! Devices' presence, and what a device and the database tell each other when it connects.

use rssh_proto::payload::{DeviceInfo, DeviceStatus, Presence};
use rssh_proto::{DeviceId, Epoch, InstanceId, Tags, TunnelId, UserId};

use super::row::{Tunnel, live, read, tunnel_columns};
use super::{PATIENCE, Store, StoreError, counter, stored, uncounter};

/// How often the agent of a device may be another one within a minute: restarts are.
const MOST_TURNS: i32 = 3;

/// What a device that has just connected should do.
#[derive(Debug, Default)]
pub struct Reconcile {
    /// Tunnels that it should hold and does not.
    pub open: Vec<Tunnel>,
    /// Tunnels that it holds and should not.
    pub close: Vec<(TunnelId, Epoch)>,
}

impl Store {
    /// The devices that a user may open something on, by name, at most 10,000.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn devices_of(&self, user: &UserId) -> Result<Vec<DeviceInfo>, StoreError> {
        self.within(async {
            type Row = (String, bool, Option<i64>, Vec<String>, Vec<String>);
            let rows: Vec<Row> = sqlx::query_as(
                "SELECT d.id, d.online, greatest(extract(epoch FROM clock_timestamp() - d.last_seen), 0)::bigint,
                        array(SELECT key FROM device_tags WHERE device_id = d.id ORDER BY key),
                        array(SELECT value FROM device_tags WHERE device_id = d.id ORDER BY key)
                 FROM devices d
                 WHERE EXISTS (SELECT FROM permits($1, d.id, NULL))
                 ORDER BY d.id LIMIT 10000",
            )
            .bind(user.as_str())
            .fetch_all(&self.pool)
            .await?;
            rows.into_iter()
                .map(|(device, online, since, keys, values)| {
                    Ok(DeviceInfo {
                        device: stored("a device", &device)?,
                        presence: if online { Presence::Online } else { Presence::Offline },
                        since_s: since.map(uncounter),
                        tags: keys.into_iter().zip(values).collect::<Tags>(),
                    })
                })
                .collect()
        })
        .await
    }

    /// The host keys of a device that a user may open something on; `None` when there is none of that name.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn host_keys(&self, user: &UserId, device: &DeviceId) -> Result<Option<Vec<String>>, StoreError> {
        self.within(async {
            let row: Option<(Vec<String>,)> = sqlx::query_as(
                "SELECT d.host_keys FROM devices d WHERE d.id = $2
                 AND EXISTS (SELECT FROM permits($1, d.id, NULL))",
            )
            .bind(user.as_str())
            .bind(device.as_str())
            .fetch_optional(&self.pool)
            .await?;
            Ok(row.map(|(keys,)| keys))
        })
        .await
    }

    /// How many live tunnels all servers hold, by state, and how many devices are connected.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn fleet(&self) -> Result<([(&'static str, i64); 4], i64), StoreError> {
        self.within(async {
            let tunnels: Vec<(String, i64)> = sqlx::query_as(concat!(
                "SELECT state, count(*) FROM tunnels WHERE state IN ",
                live!(),
                " GROUP BY state"
            ))
            .fetch_all(&self.pool)
            .await?;
            let online: i64 = sqlx::query_scalar("SELECT count(*) FROM devices WHERE online")
                .fetch_one(&self.pool)
                .await?;
            let count = |state| {
                let found = tunnels.iter().find(|(other, _)| other == state);
                (state, found.map_or(0, |(_, count)| *count))
            };
            let tunnels = ["requested", "claimed", "active", "reconnecting"].map(count);
            Ok((tunnels, online))
        })
        .await
    }

    /// Notes a device's presence; `None` when a newer one is known already.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn presence(&self, device: &DeviceId, status: &DeviceStatus) -> Result<Option<Reconcile>, StoreError> {
        let online = status.presence == Presence::Online;
        self.within(async {
            // "Offline" of the same generation is newer than its "online": it is the will or the goodbye of that
            // connection.
            let noted = sqlx::query(
                "UPDATE devices SET online = $2, generation = $3, instance = $4, last_seen = clock_timestamp()
                 WHERE id = $1 AND (generation < $3 OR (generation = $3 AND (online OR NOT $2)))",
            )
            .bind(device.as_str())
            .bind(online)
            .bind(counter(status.generation.0))
            .bind(status.instance.as_str())
            .execute(&self.pool)
            .await?;
            if noted.rows_affected() == 0 {
                return Ok(None);
            }
            if !online {
                return Ok(Some(Reconcile::default()));
            }
            self.reconcile(device, status).await.map(Some)
        })
        .await
    }

    /// Notes which agent speaks for a device. Two that take turns too often use one identity: the device is quarantined,
    /// and `true` comes back when it is so from now on.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn note_instance(&self, device: &DeviceId, instance: &InstanceId) -> Result<bool, StoreError> {
        let store = self.clone();
        let run = move |calls: Vec<(DeviceId, InstanceId)>| {
            let store = store.clone();
            async move { store.within(others(&store, &calls)).await }
        };
        let speaker = (device.clone(), instance.clone());
        // Nearly always it is the one that spoke last.
        if !self.groups.speakers.ask(PATIENCE, speaker, run).await? {
            return Ok(false);
        }
        self.note_turn(device, instance).await
    }

    /// Notes that another agent speaks for a device than the one before; `true` when the device is quarantined for that from
    /// now on.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn note_turn(&self, device: &DeviceId, instance: &InstanceId) -> Result<bool, StoreError> {
        self.within(async {
            let turned: Option<(i32,)> = sqlx::query_as(
                "UPDATE devices SET instance = $2,
                     turns = CASE WHEN turns_since > clock_timestamp() - interval '1 min' THEN turns + 1 ELSE 1 END,
                     turns_since = CASE WHEN turns_since > clock_timestamp() - interval '1 min' THEN turns_since
                                        ELSE clock_timestamp() END
                 WHERE id = $1 AND instance IS DISTINCT FROM $2 RETURNING turns",
            )
            .bind(device.as_str())
            .bind(instance.as_str())
            .fetch_optional(&self.pool)
            .await?;
            if turned.is_none_or(|(turns,)| turns <= MOST_TURNS) {
                return Ok(false);
            }
            let quarantined = sqlx::query(
                "UPDATE devices SET quarantined_until = clock_timestamp() + interval '10 min', turns = 0
                 WHERE id = $1 AND (quarantined_until IS NULL OR quarantined_until < clock_timestamp())",
            )
            .bind(device.as_str())
            .execute(&self.pool)
            .await?;
            Ok(quarantined.rows_affected() > 0)
        })
        .await
    }

    async fn reconcile(&self, device: &DeviceId, status: &DeviceStatus) -> Result<Reconcile, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            tunnel_columns!(),
            " FROM tunnels t WHERE t.device_id = $1 AND t.expires_at > clock_timestamp()
                 AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp()) AND t.state IN ",
            live!()
        ))
        .bind(device.as_str())
        .fetch_all(&self.pool)
        .await?;
        let wanted: Vec<Tunnel> = rows.iter().map(read).collect::<Result<_, _>>()?;
        let held = |id: TunnelId| status.tunnels.iter().any(|(held, _)| *held == id);
        let close = status
            .tunnels
            .iter()
            .filter(|(id, _)| !wanted.iter().any(|tunnel| tunnel.id == *id))
            .copied()
            .collect();
        let open = wanted.into_iter().filter(|tunnel| !held(tunnel.id)).collect();
        Ok(Reconcile { open, close })
    }
}

/// Of each device and the agent that speaks for it, whether another one did before.
async fn others(store: &Store, calls: &[(DeviceId, InstanceId)]) -> Result<Vec<bool>, StoreError> {
    let devices: Vec<&str> = calls.iter().map(|(device, _)| device.as_str()).collect();
    let instances: Vec<&str> = calls.iter().map(|(_, instance)| instance.as_str()).collect();
    let rows: Vec<(i64,)> = sqlx::query_as(
        "SELECT n.at FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS n(device, instance, at)
         JOIN devices d ON d.id = n.device WHERE d.instance IS DISTINCT FROM n.instance",
    )
    .bind(&devices)
    .bind(&instances)
    .fetch_all(&store.pool)
    .await?;
    let differs = |at: usize| rows.iter().any(|(other,)| usize::try_from(*other) == Ok(at));
    Ok((1..=calls.len()).map(differs).collect())
}
