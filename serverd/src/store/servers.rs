//! Servers: who runs under an id, what it says of itself, and its heartbeat.

use rssh_proto::payload::ServerState;
use rssh_proto::{Generation, ServerId};

use super::{Store, StoreError, counter, uncounter};
use crate::process::Holder;

/// What is known of an id before this process takes it.
#[derive(Debug)]
pub struct Takeover {
    pub generation: Generation,
    pub holder: Option<Holder>,
    /// The last heartbeat's counter.
    pub counter: Option<u64>,
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
        registration: &str,
    ) -> Result<bool, StoreError> {
        let state = match state {
            ServerState::Serving => "serving",
            ServerState::Draining => "draining",
            ServerState::Offline => "offline",
        };
        self.within(async {
            let done =
                sqlx::query("UPDATE servers SET state = $3, registration = $4 WHERE id = $1 AND generation = $2")
                    .bind(server.as_str())
                    .bind(counter(generation.0))
                    .bind(state)
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
}
