//! Bearer tokens of the API, by their hashes.

use rssh_proto::UserId;

use super::{Kind, Store, StoreError, stored};
use crate::token::{ApiToken, Scope};

/// A token as its owner may see it: everything but the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    pub id: String,
    pub user: UserId,
    pub scopes: Vec<Scope>,
    pub note: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub last_used_at: Option<i64>,
    pub revoked: bool,
}

impl Store {
    /// The kind of a registered identity that is not revoked.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn kind(&self, name: &str) -> Result<Option<Kind>, StoreError> {
        self.within(async {
            let row: Option<(String,)> =
                sqlx::query_as("SELECT kind FROM identities WHERE name = $1 AND revoked_at IS NULL")
                    .bind(name)
                    .fetch_optional(&self.pool)
                    .await?;
            row.map(|(kind,)| Kind::from_name(&kind).ok_or_else(|| StoreError::value("a kind", kind)))
                .transpose()
        })
        .await
    }

    /// Keeps a new token of a user, by its hash.
    ///
    /// # Errors
    /// When the user is not registered.
    pub async fn add_api_token(
        &self,
        id: &str,
        token: &ApiToken,
        user: &UserId,
        scopes: &[Scope],
        note: &str,
        lives_s: f64,
    ) -> Result<(), StoreError> {
        let scopes: Vec<String> = scopes.iter().map(Scope::to_string).collect();
        self.within(async {
            self.require("user", "SELECT 1 FROM users WHERE id = $1", user.as_str())
                .await?;
            sqlx::query(
                "INSERT INTO api_tokens (id, hash, user_id, scopes, note, expires_at)
                 VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6 * interval '1 s')",
            )
            .bind(id)
            .bind(token.hash())
            .bind(user.as_str())
            .bind(scopes)
            .bind(note)
            .bind(lives_s)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Whose token it is, and what for; nothing when it is unknown, expired or revoked.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn api_token(&self, token: &ApiToken) -> Result<Option<(UserId, Vec<Scope>)>, StoreError> {
        self.within(async {
            // The time of the last use need not be exact: at most one write a minute.
            let row: Option<(String, Vec<String>)> = sqlx::query_as(
                "WITH found AS (
                     SELECT id, user_id, scopes, last_used_at FROM api_tokens
                     WHERE hash = $1 AND revoked_at IS NULL AND expires_at > clock_timestamp()
                       AND NOT EXISTS (SELECT FROM identities WHERE name = user_id AND identities.revoked_at IS NOT NULL)
                 ), used AS (
                     UPDATE api_tokens SET last_used_at = clock_timestamp()
                     WHERE id IN (SELECT id FROM found WHERE last_used_at IS NULL
                                     OR last_used_at < clock_timestamp() - interval '1 min')
                 )
                 SELECT user_id, scopes FROM found",
            )
            .bind(token.hash())
            .fetch_optional(&self.pool)
            .await?;
            row.map(|(user, scopes)| Ok((stored("a user", &user)?, read_scopes(&scopes)?)))
                .transpose()
        })
        .await
    }

    /// The tokens that there are, of one user or of all.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn api_tokens(&self, user: Option<&UserId>) -> Result<Vec<TokenRow>, StoreError> {
        type Row = (String, String, Vec<String>, String, i64, Option<i64>, bool);
        self.within(async {
            let rows: Vec<Row> = sqlx::query_as(
                "SELECT id, user_id, scopes, note, extract(epoch FROM expires_at)::bigint,
                        extract(epoch FROM last_used_at)::bigint, revoked_at IS NOT NULL
                 FROM api_tokens WHERE $1::text IS NULL OR user_id = $1 ORDER BY created_at, id",
            )
            .bind(user.map(UserId::as_str))
            .fetch_all(&self.pool)
            .await?;
            rows.into_iter()
                .map(|(id, user, scopes, note, expires_at, last_used_at, revoked)| {
                    Ok(TokenRow {
                        id,
                        user: stored("a user", &user)?,
                        scopes: read_scopes(&scopes)?,
                        note,
                        expires_at,
                        last_used_at,
                        revoked,
                    })
                })
                .collect()
        })
        .await
    }

    /// Takes a token back; `false` when there is none with this id that is still good.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn revoke_api_token(&self, id: &str) -> Result<bool, StoreError> {
        self.within(async {
            let done = sqlx::query(
                "UPDATE api_tokens SET revoked_at = clock_timestamp() WHERE id = $1 AND revoked_at IS NULL",
            )
            .bind(id)
            .execute(&self.pool)
            .await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }
}

fn read_scopes(scopes: &[String]) -> Result<Vec<Scope>, StoreError> {
    scopes.iter().map(|scope| stored("a scope", scope)).collect()
}
