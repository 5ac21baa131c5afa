//! The keys of users for devices whose own sshd knows no certificates.

use std::time::Duration;

use rssh_proto::enrolment::AuthorizedKey;
use rssh_proto::ssh_key::PublicKey;
use rssh_proto::{Account, DeviceId, UserId};

use super::{Store, StoreError, stored};

/// How many keys of a user a device is told of: as many machines may be in use at once.
const OF_ONE: i64 = 4;
/// How many logins a device is told of.
const MOST: i64 = 500;

impl Store {
    /// Notes with which key a user logs in to some accounts of a device, for a while.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn keep_ssh_key(
        &self,
        user: &UserId,
        device: &DeviceId,
        key: &PublicKey,
        accounts: &[Account],
        lives: Duration,
    ) -> Result<(), StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            sqlx::query(
                "INSERT INTO ssh_keys (user_id, device_id, public_key, accounts, expires_at)
                 VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 s')
                 ON CONFLICT (device_id, user_id, public_key)
                 DO UPDATE SET accounts = excluded.accounts, expires_at = excluded.expires_at",
            )
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(key.as_str())
            .bind(accounts.iter().map(Account::as_str).collect::<Vec<_>>())
            .bind(lives.as_secs_f64())
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "DELETE FROM ssh_keys WHERE user_id = $1 AND device_id = $2
                   AND (expires_at <= clock_timestamp() OR public_key NOT IN (
                       SELECT k.public_key FROM ssh_keys k WHERE k.user_id = $1 AND k.device_id = $2
                       ORDER BY k.expires_at DESC LIMIT $3))",
            )
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(OF_ONE)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(())
        })
        .await
    }

    /// Who logs in to these accounts of a device now: with a key that is good, and a grant that is there.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn authorized_keys(
        &self,
        device: &DeviceId,
        accounts: &[Account],
    ) -> Result<Vec<AuthorizedKey>, StoreError> {
        self.within(async {
            let rows: Vec<(String, String, String, i64)> = sqlx::query_as(
                "SELECT a.account, k.user_id, k.public_key,
                        floor(extract(epoch FROM k.expires_at - clock_timestamp()))::bigint
                 FROM ssh_keys k, LATERAL unnest(k.accounts) a (account)
                 WHERE k.device_id = $1 AND a.account = ANY($2) AND k.expires_at > clock_timestamp()
                   AND EXISTS (SELECT FROM permits(k.user_id, $1, 'localhost:22') p
                               WHERE p.accounts = '{}' OR a.account = ANY(p.accounts))
                 ORDER BY k.expires_at DESC, 1, 2, 3 LIMIT $3",
            )
            .bind(device.as_str())
            .bind(accounts.iter().map(Account::as_str).collect::<Vec<_>>())
            .bind(MOST)
            .fetch_all(&self.pool)
            .await?;
            rows.into_iter()
                .map(|(account, user, public_key, valid_s)| {
                    Ok(AuthorizedKey {
                        account: stored("an account", &account)?,
                        user: stored("a user", &user)?,
                        public_key,
                        valid_s: u32::try_from(valid_s).unwrap_or(0),
                    })
                })
                .collect()
        })
        .await
    }
}
