//! Servers: who runs under an id, what it says of itself, and its heartbeat.

use std::net::SocketAddr;

use rssh_proto::payload::ServerState;
use rssh_proto::{Generation, ServerId};

use super::row::{Tunnel, read, tunnel_columns};
use super::{Store, StoreError, counter, stored, uncounter};
use crate::process::Holder;
use crate::suspicion::Beat;

/// What is known of an id before this process takes it.
#[derive(Debug)]
pub struct Takeover {
    pub generation: Generation,
    pub holder: Option<Holder>,
    /// The last heartbeat's counter.
    pub counter: Option<u64>,
}

/// Another server, as the database knows it.
#[derive(Debug)]
pub struct Other {
    pub id: ServerId,
    pub beat: Beat,
    /// Where it answers health checks.
    pub health: Option<SocketAddr>,
}

impl Store {
    /// Looks at who holds a server id.
    ///
    /// # Errors
    /// When the database is away or the id is not registered.
    pub async fn takeover(&self, server: &ServerId) -> Result<Takeover, StoreError> {
        self.within(async {
            let row: Option<(i64, Option<String>, Option<i64>)> = sqlx::query_as(
                "SELECT s.generation, s.holder, h.counter
                 FROM servers s LEFT JOIN server_heartbeats h ON h.server_id = s.id AND h.generation = s.generation
                 WHERE s.id = $1",
            )
            .bind(server.as_str())
            .fetch_optional(&self.pool)
            .await?;
            let Some((generation, holder, heartbeat)) = row else {
                return Err(StoreError::Unknown {
                    kind: "server",
                    name: server.to_string(),
                });
            };
            let holder = holder
                .map(|text| serde_json::from_str(&text).map_err(|_| StoreError::value("a holder", text)))
                .transpose()?;
            Ok(Takeover {
                generation: Generation(uncounter(generation)),
                holder,
                counter: heartbeat.map(uncounter),
            })
        })
        .await
    }

    /// Takes a server id at the next generation; `None` when another process was faster.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn take(
        &self,
        server: &ServerId,
        seen: Generation,
        holder: &Holder,
    ) -> Result<Option<Generation>, StoreError> {
        let holder = serde_json::to_string(holder).map_err(|_| StoreError::value("a holder", holder))?;
        self.within(async {
            let row: Option<(i64,)> = sqlx::query_as(
                "UPDATE servers SET holder = $3, generation = generation + 1, lost_at = NULL
                 WHERE id = $1 AND generation = $2 RETURNING generation",
            )
            .bind(server.as_str())
            .bind(counter(seen.0))
            .bind(holder)
            .fetch_optional(&self.pool)
            .await?;
            Ok(row.map(|(generation,)| Generation(uncounter(generation))))
        })
        .await
    }

    /// Writes what a server says of itself; `false` when its generation is over.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn register(
        &self,
        server: &ServerId,
        generation: Generation,
        state: ServerState,
        health: SocketAddr,
        registration: &str,
    ) -> Result<bool, StoreError> {
        let state = match state {
            ServerState::Serving => "serving",
            ServerState::Draining => "draining",
            ServerState::Offline => "offline",
        };
        self.within(async {
            let done = sqlx::query(
                "UPDATE servers SET state = $3, health = $4, registration = $5
                 WHERE id = $1 AND generation = $2 AND lost_at IS NULL",
            )
            .bind(server.as_str())
            .bind(counter(generation.0))
            .bind(state)
            .bind(health.to_string())
            .bind(registration)
            .execute(&self.pool)
            .await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    /// Beats; `false` when the server's generation is over, because another process has its id or it was declared lost.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn heartbeat(&self, server: &ServerId, generation: Generation, beat: u64) -> Result<bool, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            sqlx::query("SET LOCAL synchronous_commit = off")
                .execute(&mut *tx)
                .await?;
            let done = sqlx::query(
                "INSERT INTO server_heartbeats AS h (server_id, generation, counter)
                 SELECT id, generation, $3 FROM servers WHERE id = $1 AND generation = $2 AND lost_at IS NULL
                 ON CONFLICT (server_id) DO UPDATE
                 SET generation = excluded.generation, counter = excluded.counter, seen_at = clock_timestamp()",
            )
            .bind(server.as_str())
            .bind(counter(generation.0))
            .bind(counter(beat))
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    /// The heartbeats of all other servers that are not lost.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn heartbeats(&self, except: &ServerId) -> Result<Vec<Other>, StoreError> {
        self.within(async {
            let rows: Vec<(String, i64, i64, Option<String>)> = sqlx::query_as(
                "SELECT s.id, h.generation, h.counter, s.health
                 FROM servers s JOIN server_heartbeats h ON h.server_id = s.id AND h.generation = s.generation
                 WHERE s.id <> $1 AND s.lost_at IS NULL",
            )
            .bind(except.as_str())
            .fetch_all(&self.pool)
            .await?;
            rows.into_iter()
                .map(|(id, generation, beat, health)| {
                    Ok(Other {
                        id: stored("a server", &id)?,
                        beat: Beat {
                            generation: Generation(uncounter(generation)),
                            counter: uncounter(beat),
                        },
                        health: health.and_then(|address| address.parse().ok()),
                    })
                })
                .collect()
        })
        .await
    }

    /// Declares a server lost, unless it has beaten since or another was faster: fences it, takes its leases away, and
    /// returns the tunnels that have to land elsewhere.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn declare_lost(
        &self,
        lost: &ServerId,
        beat: Beat,
        rest_s: u32,
    ) -> Result<Option<Vec<Tunnel>>, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let fenced = sqlx::query(
                "UPDATE servers SET lost_at = clock_timestamp(), state = 'offline'
                 WHERE id = $1 AND generation = $2 AND lost_at IS NULL
                   AND EXISTS (SELECT 1 FROM server_heartbeats
                               WHERE server_id = $1 AND generation = $2 AND counter = $3)",
            )
            .bind(lost.as_str())
            .bind(counter(beat.generation.0))
            .bind(counter(beat.counter))
            .execute(&mut *tx)
            .await?;
            if fenced.rows_affected() == 0 {
                return Ok(None);
            }
            let rows = sqlx::query(concat!(
                "UPDATE tunnels t SET state = 'reconnecting'
                 WHERE t.id IN (SELECT id FROM tunnels WHERE server_id = $1 AND state IN ('claimed', 'active')
                                ORDER BY id FOR UPDATE) RETURNING ",
                tunnel_columns!()
            ))
            .bind(lost.as_str())
            .fetch_all(&mut *tx)
            .await?;
            sqlx::query(
                "UPDATE leases SET released_at = clock_timestamp(), evict = true,
                     free_after = greatest(clock_timestamp() + $2 * interval '1 s', named_until)
                 WHERE server_id = $1 AND released_at IS NULL",
            )
            .bind(lost.as_str())
            .bind(f64::from(rest_s))
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            rows.iter().map(read).collect::<Result<_, _>>().map(Some)
        })
        .await
    }
}
