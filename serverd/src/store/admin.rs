//! Enrolment: identities, keys and certificates.

use rssh_proto::DeviceId;
use sqlx::postgres::PgQueryResult;

use super::{Store, StoreError};
use crate::pki::{ADMIN, Issued};
use crate::ssh_keygen::PublicKey;
use crate::who::Who;

/// What an identity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Device,
    User,
    Server,
    Router,
}

impl Kind {
    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Device, Self::User, Self::Server, Self::Router]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// The kind's name, in the database and in commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::User => "user",
            Self::Server => "server",
            Self::Router => "router",
        }
    }
}

impl Store {
    /// Registers a name, or finds it registered for the same kind.
    ///
    /// # Errors
    /// When another kind of identity has the name.
    pub async fn add_identity(&self, kind: Kind, name: &str) -> Result<(), StoreError> {
        if name == ADMIN {
            return Err(StoreError::Reserved(name.to_owned()));
        }
        self.within(async {
            let mut tx = self.pool.begin().await?;
            sqlx::query("INSERT INTO identities (name, kind) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
                .bind(name)
                .bind(kind.name())
                .execute(&mut *tx)
                .await?;
            let (by, revoked): (String, bool) =
                sqlx::query_as("SELECT kind, revoked_at IS NOT NULL FROM identities WHERE name = $1")
                    .bind(name)
                    .fetch_one(&mut *tx)
                    .await?;
            if by != kind.name() {
                let name = name.to_owned();
                return Err(StoreError::Taken { name, by });
            }
            if revoked {
                let (kind, name) = (kind.name(), name.to_owned());
                return Err(StoreError::Revoked { kind, name });
            }
            let insert = match kind {
                Kind::User => "INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING",
                Kind::Server => "INSERT INTO servers (id) VALUES ($1) ON CONFLICT DO NOTHING",
                // A device needs its key too; a router has nothing more.
                Kind::Device | Kind::Router => "SELECT $1::text",
            };
            sqlx::query(insert).bind(name).execute(&mut *tx).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    /// Registers a device with the key its ssh logs in with, or gives it another key.
    ///
    /// # Errors
    /// When the name or the key is another's.
    pub async fn add_device(&self, device: &DeviceId, key: &PublicKey) -> Result<(), StoreError> {
        self.add_identity(Kind::Device, device.as_str()).await?;
        self.within(async {
            let done = sqlx::query(
                "INSERT INTO devices (id, ssh_key) VALUES ($1, $2)
                 ON CONFLICT (id) DO UPDATE SET ssh_key = excluded.ssh_key",
            )
            .bind(device.as_str())
            .bind(key.as_str())
            .execute(&self.pool)
            .await;
            keyed(key, done)
        })
        .await
    }

    /// Records a certificate that was issued.
    ///
    /// # Errors
    /// When the name is not registered, or is revoked: then nobody may get the certificate.
    pub async fn add_certificate(&self, name: &str, issued: &Issued) -> Result<(), StoreError> {
        self.within(async {
            // The lock makes it wait for a revocation that is under way.
            let added = sqlx::query(
                "INSERT INTO certificates (serial, name, not_after)
                 SELECT $1, name, to_timestamp($3) FROM identities WHERE name = $2 AND revoked_at IS NULL FOR SHARE",
            )
            .bind(&issued.serial)
            .bind(name)
            .bind(issued.not_after.0 as f64)
            .execute(&self.pool)
            .await?;
            if added.rows_affected() == 0 {
                let kind: Option<(String,)> = sqlx::query_as("SELECT kind FROM identities WHERE name = $1")
                    .bind(name)
                    .fetch_optional(&self.pool)
                    .await?;
                let name = name.to_owned();
                return Err(match kind.and_then(|(kind,)| Kind::from_name(&kind)) {
                    Some(kind) => StoreError::Revoked {
                        kind: kind.name(),
                        name,
                    },
                    None => StoreError::Unknown { kind: "identity", name },
                });
            }
            Ok(())
        })
        .await
    }
}

/// How many names are read at once: a statement has little time.
const PAGE: i64 = 5000;

impl Store {
    /// Everyone who has ever had a certificate and is not revoked, by name.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn enrolled(&self) -> Result<Vec<Who>, StoreError> {
        let mut all = Vec::new();
        let mut last = String::new();
        loop {
            let page: Vec<(String, String)> = self
                .within(async {
                    Ok(sqlx::query_as(
                        "SELECT i.kind, i.name FROM identities i
                         WHERE i.name > $1 AND i.revoked_at IS NULL
                           AND EXISTS (SELECT FROM certificates c WHERE c.name = i.name)
                         ORDER BY i.name LIMIT $2",
                    )
                    .bind(&last)
                    .bind(PAGE)
                    .fetch_all(&self.pool)
                    .await?)
                })
                .await?;
            let Some((_, name)) = page.last() else {
                return Ok(all);
            };
            last.clone_from(name);
            for (kind, name) in page {
                let who = Kind::from_name(&kind).and_then(|kind| Who::new(kind, &name).ok());
                all.push(who.ok_or_else(|| StoreError::value("an identity", format!("{kind} {name}")))?);
            }
        }
    }
}

/// What became of giving a device a key, which only one may have.
pub(super) fn keyed(key: &PublicKey, done: Result<PgQueryResult, sqlx::Error>) -> Result<(), StoreError> {
    match done {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(StoreError::KeyTaken(key.to_string())),
        other => Ok(other.map(drop)?),
    }
}
