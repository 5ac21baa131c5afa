//! Forgetting a user: what is kept tells of nobody any more.

use rssh_proto::UserId;
use rssh_proto::audit::Event;

use super::revocation::lock;
use super::{Kind, Store, StoreError};

/// What forgetting a user did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// What stands in the user's place.
    pub pseudonym: String,
    pub events: u64,
    pub tunnels: u64,
    /// Until when the name has to stay revoked, as text: a certificate of its is good until then.
    pub stays_until: Option<String>,
}

/// What is the user's alone goes; revoking has taken the enrolment tokens. Openers first, while tunnels say whose they are.
const GONE: [&str; 6] = [
    "DELETE FROM openers o USING tunnels t WHERE t.id = o.tunnel_id AND t.user_id = $1",
    "DELETE FROM grants WHERE user_id = $1",
    "DELETE FROM group_members WHERE user_id = $1",
    "DELETE FROM api_tokens WHERE user_id = $1",
    "UPDATE users SET max_tunnels = NULL, opens_per_minute = NULL WHERE id = $1",
    "DELETE FROM ssh_keys WHERE user_id = $1",
];

impl Store {
    /// Forgets a revoked user: a pseudonym stands in the user's place in every event and tunnel, the events' addresses
    /// go, and so does all that was the user's alone. The audit chains still verify.
    ///
    /// The name itself stays, revoked, for as long as a certificate of its is good: whoever holds one must not get in.
    ///
    /// # Errors
    /// When the user is not registered or not revoked.
    pub async fn forget(&self, user: &UserId, note: &Event) -> Result<Forgotten, StoreError> {
        let pseudonym = format!("forgotten-{}", rssh_proto::id::random_hex::<8>());
        let note = note.clone().with("pseudonym", pseudonym.as_str());
        let text = serde_json::to_string(&[note]).map_err(|error| StoreError::value("an event", error))?;
        let name = user.as_str();
        self.within(async {
            let mut tx = self.pool.begin().await?;
            lock(&mut tx, Kind::User, name).await?;
            let revoked: Option<(i32,)> =
                sqlx::query_as("SELECT 1 FROM identities WHERE name = $1 AND revoked_at IS NOT NULL FOR UPDATE")
                    .bind(name)
                    .fetch_optional(&mut *tx)
                    .await?;
            revoked.ok_or_else(|| StoreError::NotRevoked(user.clone()))?;
            for statement in GONE {
                sqlx::query(statement).bind(name).execute(&mut *tx).await?;
            }
            // Tunnels stay: ports rest by their leases, and they are counted. They need somebody whose they are.
            sqlx::query(
                "INSERT INTO identities (name, kind, revoked_at)
                 SELECT $2, 'user', clock_timestamp() WHERE EXISTS (SELECT FROM tunnels WHERE user_id = $1)",
            )
            .bind(name)
            .bind(&pseudonym)
            .execute(&mut *tx)
            .await?;
            sqlx::query("INSERT INTO users (id) SELECT name FROM identities WHERE name = $1")
                .bind(&pseudonym)
                .execute(&mut *tx)
                .await?;
            let tunnels = sqlx::query("UPDATE tunnels SET user_id = $2 WHERE user_id = $1")
                .bind(name)
                .bind(&pseudonym)
                .execute(&mut *tx)
                .await?
                .rows_affected();
            // Of the certificates only the one that is good for longest matters, while it is.
            sqlx::query(
                "DELETE FROM certificates WHERE name = $1 AND serial NOT IN
                 (SELECT serial FROM certificates WHERE name = $1 AND not_after > clock_timestamp()
                  ORDER BY not_after DESC LIMIT 1)",
            )
            .bind(name)
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "DELETE FROM identities WHERE name = $1 AND NOT EXISTS (SELECT FROM certificates WHERE name = $1)",
            )
            .bind(name)
            .execute(&mut *tx)
            .await?;
            let stays: Option<(String,)> = sqlx::query_as(
                "SELECT to_char(not_after AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') FROM certificates WHERE name = $1",
            )
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
            let events =
                sqlx::query("UPDATE audit_events SET user_id = $2, source = NULL, salt = NULL WHERE user_id = $1")
                    .bind(name)
                    .bind(&pseudonym)
                    .execute(&mut *tx)
                    .await?
                    .rows_affected();
            sqlx::query("SELECT audit_append($1, $2::jsonb)")
                .bind(crate::audit::ADMIN)
                .bind(text)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(Forgotten {
                pseudonym,
                events,
                tunnels,
                stays_until: stays.map(|(until,)| until),
            })
        })
        .await
    }
}
