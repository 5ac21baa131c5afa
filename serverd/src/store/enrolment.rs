//! Enrolment tokens by their hashes, and what a device tells of itself when it enrols.

use rssh_proto::{DeviceId, Tag, Tags};

use super::admin::keyed;
use super::{Kind, Store, StoreError, stored};
use crate::ssh_keygen::PublicKey;

/// A token that is to be kept.
#[derive(Debug)]
pub struct NewEnrolment<'a> {
    pub id: &'a str,
    pub hash: &'a [u8],
    pub kind: Kind,
    /// Whom it enrols; nothing for a fleet's.
    pub name: Option<&'a str>,
    pub uses: i32,
    pub tags: &'a [Tag],
    pub lives_s: f64,
}

/// Whom a token lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub name: String,
    pub tags: Tags,
}

impl Store {
    /// Keeps a token; a name that it is for is reserved for that kind from now on.
    ///
    /// # Errors
    /// When another kind of identity has the name.
    pub async fn add_enrolment(&self, new: &NewEnrolment<'_>) -> Result<(), StoreError> {
        if let Some(name) = new.name {
            self.add_identity(new.kind, name).await?;
        }
        let tags: Tags = new
            .tags
            .iter()
            .map(|tag| (tag.key().to_owned(), tag.value().to_owned()))
            .collect();
        let tags = serde_json::to_string(&tags).map_err(|error| StoreError::value("tags", error))?;
        self.within(async {
            sqlx::query(
                "INSERT INTO enrolment_tokens (id, hash, kind, name, uses_left, tags, expires_at)
                 VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, clock_timestamp() + $7 * interval '1 s')",
            )
            .bind(new.id)
            .bind(new.hash)
            .bind(new.kind.name())
            .bind(new.name)
            .bind(new.uses)
            .bind(tags)
            .bind(new.lives_s)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Uses a token, for a key. The same key may use it again: its owner has lost the answer.
    ///
    /// A fleet's token takes the name that its bearer wants, unless something has that name already: whoever holds
    /// such a token must not become another device.
    ///
    /// # Errors
    /// When the token is no good, or not for this, or the name is revoked.
    pub async fn use_enrolment(
        &self,
        hash: &[u8],
        kind: Kind,
        wanted: Option<&str>,
        key_hash: &[u8],
    ) -> Result<Admission, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let row: Option<(String, Option<String>, i32, String)> = sqlx::query_as(
                "SELECT id, name, uses_left, tags::text FROM enrolment_tokens
                 WHERE hash = $1 AND kind = $2 AND expires_at > clock_timestamp() FOR UPDATE",
            )
            .bind(hash)
            .bind(kind.name())
            .fetch_optional(&mut *tx)
            .await?;
            let (id, named, uses_left, tags) = row.ok_or(StoreError::Token)?;
            let is_fleets = named.is_none();
            let name = match (named, wanted) {
                (Some(named), Some(wanted)) if named != wanted => return Err(StoreError::Token),
                (Some(named), _) => named,
                (None, Some(wanted)) => wanted.to_owned(),
                (None, None) => return Err(StoreError::Nameless),
            };
            let known: Option<(String, bool)> =
                sqlx::query_as("SELECT kind, revoked_at IS NOT NULL FROM identities WHERE name = $1")
                    .bind(&name)
                    .fetch_optional(&mut *tx)
                    .await?;
            if let Some((_, true)) = known {
                let kind = kind.name();
                return Err(StoreError::Revoked { kind, name });
            }
            let used: Option<(Vec<u8>,)> =
                sqlx::query_as("SELECT key_hash FROM enrolment_uses WHERE token_id = $1 AND name = $2")
                    .bind(&id)
                    .bind(&name)
                    .fetch_optional(&mut *tx)
                    .await?;
            match used {
                Some((before,)) if before == key_hash => {}
                Some(_) => return Err(StoreError::Token),
                None => {
                    if uses_left == 0 {
                        return Err(StoreError::Token);
                    }
                    if let Some((by, _)) = known.filter(|_| is_fleets) {
                        return Err(StoreError::Taken { name, by });
                    }
                    sqlx::query("UPDATE enrolment_tokens SET uses_left = uses_left - 1 WHERE id = $1")
                        .bind(&id)
                        .execute(&mut *tx)
                        .await?;
                    sqlx::query("INSERT INTO enrolment_uses (token_id, name, key_hash) VALUES ($1, $2, $3)")
                        .bind(&id)
                        .bind(&name)
                        .bind(key_hash)
                        .execute(&mut *tx)
                        .await?;
                }
            }
            tx.commit().await?;
            let tags = serde_json::from_str(&tags).map_err(|_| StoreError::value("tags", tags))?;
            Ok(Admission { name, tags })
        })
        .await
    }

    /// Notes what a device is and has: its tags, and the host keys of its sshd. Nothing is taken away.
    ///
    /// # Errors
    /// When the device is not registered.
    pub async fn describe_device(
        &self,
        device: &DeviceId,
        tags: &Tags,
        host_keys: &[PublicKey],
    ) -> Result<(), StoreError> {
        let (keys, values): (Vec<String>, Vec<String>) = tags.clone().into_iter().unzip();
        let host_keys: Vec<String> = host_keys.iter().map(PublicKey::to_string).collect();
        self.within(async {
            sqlx::query(
                "INSERT INTO device_tags (device_id, key, value)
                 SELECT $1, * FROM unnest($2::text[], $3::text[])
                 ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value",
            )
            .bind(device.as_str())
            .bind(keys)
            .bind(values)
            .execute(&self.pool)
            .await?;
            if !host_keys.is_empty() {
                sqlx::query("UPDATE devices SET host_keys = $2 WHERE id = $1")
                    .bind(device.as_str())
                    .bind(host_keys)
                    .execute(&self.pool)
                    .await?;
            }
            Ok(())
        })
        .await
    }

    /// Gives a device another SSH key; the one before stays good for a while.
    ///
    /// # Errors
    /// When the key is another device's.
    pub async fn rotate_ssh_key(&self, device: &DeviceId, key: &PublicKey, overlap_s: f64) -> Result<(), StoreError> {
        self.within(async {
            let done = sqlx::query(
                "UPDATE devices SET ssh_key_before = ssh_key, ssh_key = $2,
                        ssh_key_before_until = clock_timestamp() + $3 * interval '1 s'
                 WHERE id = $1 AND ssh_key <> $2",
            )
            .bind(device.as_str())
            .bind(key.as_str())
            .bind(overlap_s)
            .execute(&self.pool)
            .await;
            keyed(key, done)
        })
        .await
    }

    /// The keys by which a device is known now, and the host keys of its sshd.
    ///
    /// # Errors
    /// When the device is not registered.
    pub async fn device_keys(&self, device: &DeviceId) -> Result<(Vec<PublicKey>, Vec<PublicKey>), StoreError> {
        self.within(async {
            let row: Option<(String, Option<String>, Vec<String>)> = sqlx::query_as(
                "SELECT ssh_key, CASE WHEN ssh_key_before_until > clock_timestamp() THEN ssh_key_before END, host_keys
                 FROM devices WHERE id = $1",
            )
            .bind(device.as_str())
            .fetch_optional(&self.pool)
            .await?;
            let Some((key, before, host_keys)) = row else {
                return Err(StoreError::Unknown {
                    kind: "device",
                    name: device.to_string(),
                });
            };
            let read = |keys: Vec<String>| keys.iter().map(|key| stored("a key", key)).collect();
            let keys: Result<Vec<_>, _> = read([Some(key), before].into_iter().flatten().collect());
            Ok((keys?, read(host_keys)?))
        })
        .await
    }
}
