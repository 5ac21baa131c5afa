//! What is over: it is kept for a while, and dropped then.

use rssh_proto::duration::Span;

use super::{Store, StoreError};

/// How many tunnels go at once.
const BATCH: i64 = 500;

impl Store {
    /// Drops tunnels that ended longer ago than that, the oldest first, with their openers and released leases; not while
    /// a port still rests for one. Returns how many of a batch went, and whether there may be more.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn drop_over(&self, older: Span) -> Result<(u64, bool), StoreError> {
        self.within(async {
            let gone = sqlx::query(
                "DELETE FROM tunnels WHERE id IN (
                     SELECT t.id FROM tunnels t WHERE t.ended_at < clock_timestamp() - $1 * interval '1 s'
                       AND NOT EXISTS (SELECT FROM leases l WHERE l.tunnel_id = t.id
                                       AND (l.free_after IS NULL OR l.free_after > clock_timestamp()))
                     ORDER BY t.ended_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
            )
            .bind(older.duration().as_secs_f64())
            .bind(BATCH)
            .execute(&self.pool)
            .await?
            .rows_affected();
            Ok((gone, gone == BATCH.unsigned_abs()))
        })
        .await
    }
}
