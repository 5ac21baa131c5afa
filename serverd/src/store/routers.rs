//! Routers: what they lead users to, as far as a server has to know it.

use std::net::IpAddr;

use rssh_proto::ServerId;

use super::{Store, StoreError};

/// How a server's address stands with others.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// Whether another id has had it.
    pub used: bool,
    /// Other ids that have it and are not lost.
    pub holders: Vec<String>,
    /// Routers that lead another id's users there, or have not looked since the moment that was asked for.
    pub behind: Vec<String>,
    /// PostgreSQL's clock, in seconds.
    pub now: f64,
}

impl Store {
    /// Looks at who else has an address. Routers that were silent for longer than `lives_s` do not count; of the others
    /// each must have looked after `since`, when that is given.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn standing(
        &self,
        server: &ServerId,
        address: IpAddr,
        lives_s: u32,
        since: Option<f64>,
    ) -> Result<Standing, StoreError> {
        self.within(async {
            let (used, holders, behind, now) = sqlx::query_as::<_, (bool, Vec<String>, Vec<String>, f64)>(
                "SELECT EXISTS (SELECT 1 FROM servers WHERE id <> $1 AND address = $2),
                        ARRAY(SELECT id FROM servers WHERE id <> $1 AND address = $2 AND lost_at IS NULL ORDER BY 1),
                        ARRAY(SELECT id FROM routers
                              WHERE seen_at > clock_timestamp() - $3 * interval '1 s'
                                AND (extract(epoch FROM seen_at)::float8 <= $4
                                     OR EXISTS (SELECT 1 FROM jsonb_array_elements(routes) AS route
                                                WHERE route->>1 = $2 AND route->>0 <> $1))
                              ORDER BY 1),
                        extract(epoch FROM clock_timestamp())::float8",
            )
            .bind(server.as_str())
            .bind(address.to_string())
            .bind(f64::from(lives_s))
            .bind(since.unwrap_or(0.0))
            .fetch_one(&self.pool)
            .await?;
            Ok(Standing {
                used,
                holders,
                behind,
                now,
            })
        })
        .await
    }

    /// Makes an address this server's: whoever had it before has it no more.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn take_address(&self, server: &ServerId, address: IpAddr) -> Result<(), StoreError> {
        self.within(async {
            sqlx::query("UPDATE servers SET address = CASE WHEN id = $1 THEN $2 END WHERE id = $1 OR address = $2")
                .bind(server.as_str())
                .bind(address.to_string())
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }
}
