//! Names that may do nothing any more.

use sqlx::postgres::PgConnection;

use super::admin::Kind;
use super::tunnels::withdraw;
use super::{Store, StoreError};

/// What revoking a name did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked {
    /// Whether it was in force before.
    pub already: bool,
    /// How many tunnels were closed.
    pub tunnels: u64,
}

impl Store {
    /// Revokes a device, a user or a router: nothing is opened, landed or signed for the name any more, and its tunnels end.
    ///
    /// # Errors
    /// When no such name is registered.
    pub async fn revoke(&self, kind: Kind, name: &str) -> Result<Revoked, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            lock(&mut tx, kind, name).await?;
            let (already,): (bool,) = sqlx::query_as("SELECT revoked_at IS NOT NULL FROM identities WHERE name = $1")
                .bind(name)
                .fetch_one(&mut *tx)
                .await?;
            sqlx::query("UPDATE identities SET revoked_at = coalesce(revoked_at, clock_timestamp()) WHERE name = $1")
                .bind(name)
                .execute(&mut *tx)
                .await?;
            sqlx::query(
                "UPDATE api_tokens SET revoked_at = coalesce(revoked_at, clock_timestamp()) WHERE user_id = $1",
            )
            .bind(name)
            .execute(&mut *tx)
            .await?;
            // Nor does a token from before enrol it again once the name is given back.
            sqlx::query("DELETE FROM enrolment_tokens WHERE name = $1")
                .bind(name)
                .execute(&mut *tx)
                .await?;
            sqlx::query("DELETE FROM enrolment_uses WHERE name = $1")
                .bind(name)
                .execute(&mut *tx)
                .await?;
            let users = [name.to_owned()];
            let tunnels = match kind {
                Kind::Device => {
                    let device = super::stored("a device", name)?;
                    withdraw(&mut tx, None, Some(&device)).await?
                }
                _ => withdraw(&mut tx, Some(&users), None).await?,
            };
            tx.commit().await?;
            Ok(Revoked { already, tunnels })
        })
        .await
    }

    /// Gives a revoked name back. Who holds one of its certificates from before is let in again then, since the broker
    /// knows identities by name only; so that is refused while such a certificate is valid, unless `all_the_same`.
    ///
    /// # Errors
    /// When the name is not registered, or a certificate from before is still valid.
    pub async fn unrevoke(&self, kind: Kind, name: &str, all_the_same: bool) -> Result<(), StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            lock(&mut tx, kind, name).await?;
            let valid: Option<(String,)> = sqlx::query_as(
                "SELECT to_char(max(c.not_after) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')
                 FROM certificates c JOIN identities i ON i.name = c.name
                 WHERE c.name = $1 AND c.issued_at <= i.revoked_at AND c.not_after > clock_timestamp()
                 HAVING count(*) > 0",
            )
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
            if let Some((until,)) = valid.filter(|_| !all_the_same) {
                return Err(StoreError::StillValid {
                    name: name.to_owned(),
                    until,
                });
            }
            sqlx::query("UPDATE identities SET revoked_at = NULL WHERE name = $1")
                .bind(name)
                .execute(&mut *tx)
                .await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    /// Whether a name is revoked; one that is not registered is not.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn is_revoked(&self, name: &str) -> Result<bool, StoreError> {
        self.within(async {
            let (revoked,): (bool,) =
                sqlx::query_as("SELECT EXISTS (SELECT FROM identities WHERE name = $1 AND revoked_at IS NOT NULL)")
                    .bind(name)
                    .fetch_one(&self.pool)
                    .await?;
            Ok(revoked)
        })
        .await
    }
}

/// Locks the name's row, so that no request of its is half-way through its check.
pub(super) async fn lock(connection: &mut PgConnection, kind: Kind, name: &str) -> Result<(), StoreError> {
    let sql = match kind {
        Kind::Device => "SELECT 1 FROM devices WHERE id = $1 FOR NO KEY UPDATE",
        Kind::User => "SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE",
        Kind::Server => "SELECT 1 FROM identities WHERE name = $1 AND kind = 'server' FOR NO KEY UPDATE",
        Kind::Router => "SELECT 1 FROM identities WHERE name = $1 AND kind = 'router' FOR NO KEY UPDATE",
    };
    let found: Option<(i32,)> = sqlx::query_as(sql).bind(name).fetch_optional(connection).await?;
    found.map(|_| ()).ok_or_else(|| StoreError::Unknown {
        kind: kind.name(),
        name: name.to_owned(),
    })
}
