//! The audit trail in the database: appending, reading, pruning.

use rssh_proto::audit::Event;
use rssh_proto::{DeviceId, UserId};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::{Store, StoreError, counter, uncounter};
use crate::audit::{Entry, Head, Known};

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub user: Option<UserId>,
    pub device: Option<DeviceId>,
    /// Microseconds since 1970.
    pub since_us: Option<i64>,
}

/// How many entries are read at once.
const PAGE: i64 = 2000;

macro_rules! entry_columns {
    () => {
        "e.chain, e.seq, e.at_us, e.kind, e.user_id, e.device_id, e.tunnel_id, e.source, e.detail::text AS detail,
         e.salt, e.person, e.prev, e.hash,
         audit_text(e.chain, e.seq, e.at_us, e.kind, e.device_id, e.tunnel_id, e.detail, e.person) AS text,
         CASE WHEN e.kind = 'claim' THEN
             (SELECT c.source FROM audit_events c
              WHERE c.kind = 'device-connection' AND c.detail ->> 'via' = e.detail ->> 'via'
                AND e.at_us BETWEEN c.at_us - 1000000 AND c.at_us + (c.detail ->> 'ms')::bigint * 1000 + 1000000
              ORDER BY c.at_us DESC LIMIT 1) END AS device_source"
    };
}

/// A chain's head as the database has it.
fn head((seq, hash): (i64, Vec<u8>)) -> Head {
    Head {
        seq: uncounter(seq),
        hash,
    }
}

fn read(row: &PgRow) -> Result<Entry, StoreError> {
    let detail: &str = row.try_get("detail")?;
    Ok(Entry {
        chain: row.try_get("chain")?,
        seq: uncounter(row.try_get("seq")?),
        at_us: row.try_get("at_us")?,
        kind: row.try_get("kind")?,
        user: row.try_get("user_id")?,
        device: row.try_get("device_id")?,
        tunnel: row.try_get::<Option<uuid::Uuid>, _>("tunnel_id")?.map(Into::into),
        source: row
            .try_get::<Option<String>, _>("source")?
            .or(row.try_get("device_source")?),
        detail: serde_json::from_str(detail).map_err(|_| StoreError::value("an event", detail))?,
        sealed: crate::audit::Sealed {
            text: row.try_get("text")?,
            own_source: row.try_get("source")?,
            salt: row.try_get("salt")?,
            person: row.try_get("person")?,
            prev: row.try_get("prev")?,
            hash: row.try_get("hash")?,
        },
    })
}

impl Store {
    /// Appends events to a chain; returns its new head.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn audit(&self, chain: &str, events: &[Event]) -> Result<Head, StoreError> {
        let text = serde_json::to_string(events).map_err(|error| StoreError::value("an event", error))?;
        self.within(async {
            let head = sqlx::query_as("SELECT head_seq, head_hash FROM audit_append($1, $2::jsonb)")
                .bind(chain)
                .bind(text)
                .fetch_one(&self.pool)
                .await?;
            Ok(self::head(head))
        })
        .await
    }

    /// Notes in a chain where all others end.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn audit_anchor(&self, chain: &str) -> Result<Head, StoreError> {
        self.within(async {
            let head = sqlx::query_as("SELECT head_seq, head_hash FROM audit_anchor($1, $2)")
                .bind(chain)
                .bind(Event::now("anchor").at_us)
                .fetch_one(&self.pool)
                .await?;
            Ok(self::head(head))
        })
        .await
    }

    /// Hands the wanted events to `take`, the oldest first, those after `seen` only; returns the last of each chain.
    ///
    /// # Errors
    /// When the database is away, or `take` fails.
    pub async fn audited(
        &self,
        wanted: &Wanted,
        mut take: impl FnMut(Entry) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut after: (i64, String, i64) = (wanted.since_us.unwrap_or(i64::MIN), String::new(), 0);
        loop {
            let rows = self
                .within(async {
                    Ok(sqlx::query(concat!(
                        "SELECT ",
                        entry_columns!(),
                        " FROM audit_events e
                         WHERE (e.at_us, e.chain, e.seq) > ($1, $2, $3)
                           AND ($4::text IS NULL OR e.user_id = $4) AND ($5::text IS NULL OR e.device_id = $5)
                         ORDER BY e.at_us, e.chain, e.seq LIMIT $6"
                    ))
                    .bind(after.0)
                    .bind(&after.1)
                    .bind(after.2)
                    .bind(wanted.user.as_ref().map(UserId::as_str))
                    .bind(wanted.device.as_ref().map(DeviceId::as_str))
                    .bind(PAGE)
                    .fetch_all(&self.pool)
                    .await?)
                })
                .await?;
            for row in &rows {
                let entry = read(row)?;
                after = (entry.at_us, entry.chain.clone(), counter(entry.seq));
                take(entry)?;
            }
            if rows.len() < usize::try_from(PAGE).unwrap_or(0) {
                return Ok(());
            }
        }
    }

    /// Hands all events to `take`, chain by chain in the order of their numbers.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn audit_chains(&self, mut take: impl FnMut(&Entry)) -> Result<(), StoreError> {
        let (mut chain, mut seq) = (String::new(), 0_i64);
        loop {
            let rows = self
                .within(async {
                    Ok(sqlx::query(concat!(
                        "SELECT ",
                        entry_columns!(),
                        " FROM audit_events e WHERE (e.chain, e.seq) > ($1, $2) ORDER BY e.chain, e.seq LIMIT $3"
                    ))
                    .bind(&chain)
                    .bind(seq)
                    .bind(PAGE)
                    .fetch_all(&self.pool)
                    .await?)
                })
                .await?;
            for row in &rows {
                let entry = read(row)?;
                (chain, seq) = (entry.chain.clone(), counter(entry.seq));
                take(&entry);
            }
            if rows.len() < usize::try_from(PAGE).unwrap_or(0) {
                return Ok(());
            }
        }
    }

    /// Where each chain begins and ends, and what anchors and forgettings say; by name of the chain.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn audit_known(&self) -> Result<Known, StoreError> {
        self.within(async {
            type Ends = (String, i64, Vec<u8>, i64, Vec<u8>);
            let heads: Vec<Ends> = sqlx::query_as("SELECT chain, seq, hash, base_seq, base_hash FROM audit_heads")
                .fetch_all(&self.pool)
                .await?;
            let anchors: Vec<(String, i64, String)> = sqlx::query_as(
                "SELECT h.key, (h.value ->> 0)::bigint, h.value ->> 1
                 FROM audit_events e, jsonb_each(e.detail -> 'heads') h WHERE e.kind = 'anchor'",
            )
            .fetch_all(&self.pool)
            .await?;
            let pseudonyms: Vec<(String,)> =
                sqlx::query_as("SELECT detail ->> 'pseudonym' FROM audit_events WHERE kind = 'user-forgotten'")
                    .fetch_all(&self.pool)
                    .await?;
            let mut known = Known::default();
            for (chain, seq, hash, base_seq, base_hash) in heads {
                known
                    .ends
                    .insert(chain, (head((base_seq, base_hash)), head((seq, hash))));
            }
            for (chain, seq, hash) in anchors {
                known.anchors.insert((chain, uncounter(seq)), hash);
            }
            known.pseudonyms = pseudonyms.into_iter().map(|(pseudonym,)| pseudonym).collect();
            Ok(known)
        })
        .await
    }

    /// Drops events older than a moment from the beginning of each chain; returns how many. What is left is anchored in
    /// the hash of the last that went.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn audit_prune(&self, before_us: i64) -> Result<u64, StoreError> {
        let mut pruned = 0;
        loop {
            let batch = self
                .within(async {
                    let mut tx = self.pool.begin().await?;
                    let chains: Vec<(String, i64)> =
                        sqlx::query_as("SELECT chain, base_seq FROM audit_heads ORDER BY chain FOR UPDATE")
                            .fetch_all(&mut *tx)
                            .await?;
                    let mut batch = 0;
                    for (chain, base) in chains {
                        // Up to the first that is young enough: a chain has no holes.
                        let last: Option<(i64, Vec<u8>)> = sqlx::query_as(
                            "SELECT seq, hash FROM audit_events WHERE chain = $1 AND seq > $2 AND seq <= $2 + $3
                               AND seq < coalesce((SELECT min(seq) FROM audit_events WHERE chain = $1 AND at_us >= $4),
                                                  9223372036854775807)
                             ORDER BY seq DESC LIMIT 1",
                        )
                        .bind(&chain)
                        .bind(base)
                        .bind(PAGE)
                        .bind(before_us)
                        .fetch_optional(&mut *tx)
                        .await?;
                        let Some((seq, hash)) = last else { continue };
                        sqlx::query("UPDATE audit_heads SET base_seq = $2, base_hash = $3 WHERE chain = $1")
                            .bind(&chain)
                            .bind(seq)
                            .bind(hash)
                            .execute(&mut *tx)
                            .await?;
                        batch += sqlx::query("DELETE FROM audit_events WHERE chain = $1 AND seq <= $2")
                            .bind(&chain)
                            .bind(seq)
                            .execute(&mut *tx)
                            .await?
                            .rows_affected();
                    }
                    tx.commit().await?;
                    Ok(batch)
                })
                .await?;
            pruned += batch;
            if batch == 0 {
                return Ok(pruned);
            }
        }
    }
}
