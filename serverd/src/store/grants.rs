//! Who may open what: grants, groups and tags, and the one decision that every reader asks (`permits` in the database).

use rssh_proto::{Account, DeviceId, GroupId, Tag, Target, UserId};
use serde::Serialize;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::tunnels::withdraw;
use super::{Store, StoreError, stored};

/// Who holds a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grantee {
    User(UserId),
    Group(GroupId),
}

impl Grantee {
    fn columns(&self) -> (Option<&str>, Option<&str>) {
        match self {
            Self::User(user) => (Some(user.as_str()), None),
            Self::Group(group) => (None, Some(group.as_str())),
        }
    }
}

impl std::fmt::Display for Grantee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(user) => user.fmt(f),
            Self::Group(group) => write!(f, "the group {group}"),
        }
    }
}

/// Which devices a grant is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Devices {
    One(DeviceId),
    Tagged(Tag),
    All,
}

impl std::fmt::Display for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(device) => device.fmt(f),
            Self::Tagged(tag) => write!(f, "devices with {tag}"),
            Self::All => f.write_str("every device"),
        }
    }
}

/// What a grant allows beside the tunnel itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Terms {
    /// The login accounts that a user certificate may name.
    pub accounts: Vec<Account>,
    /// How many tunnels each holder may have by the grant at once; any number when absent.
    pub max_tunnels: Option<u32>,
    /// How long such a tunnel may live, in seconds; as long as the server allows when absent.
    pub max_ttl_s: Option<u32>,
    /// Whether the holder may hand names to others.
    pub share: bool,
}

/// A grant as the database has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Permission {
    pub id: i64,
    pub holder: Grantee,
    pub devices: Devices,
    /// Any target when absent.
    pub target: Option<Target>,
    #[serde(flatten)]
    pub terms: Terms,
}

/// How a grant stands to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It allows what was asked.
    Matches,
    /// It is for the device, but for another target.
    OtherTarget,
    /// It is for other devices.
    OtherDevice,
}

/// The answer to whether a user may open something, with what led to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub allowed: bool,
    /// What stands against it whatever the grants say.
    pub obstacle: Option<String>,
    /// Every grant that the user holds, those that match first.
    pub grants: Vec<(Verdict, Permission)>,
}

/// The columns that [`read`] reads.
macro_rules! grant_columns {
    () => {
        "g.id, g.user_id, g.group_id, g.device_id, g.tag_key, g.tag_value, g.target, g.accounts, g.max_tunnels,
         g.max_ttl_s, g.share"
    };
}

fn read(row: &PgRow) -> Result<Permission, StoreError> {
    let text = |column| row.try_get::<Option<&str>, _>(column);
    let number = |column| {
        let value: Option<i32> = row.try_get(column)?;
        Ok::<_, StoreError>(value.and_then(|value| u32::try_from(value).ok()))
    };
    let holder = match (text("user_id")?, text("group_id")?) {
        (Some(user), _) => Grantee::User(stored("a user", user)?),
        (None, group) => Grantee::Group(stored("a group", group.unwrap_or_default())?),
    };
    let devices = match (text("device_id")?, text("tag_key")?, text("tag_value")?) {
        (Some(device), ..) => Devices::One(stored("a device", device)?),
        (None, Some(key), Some(value)) => Devices::Tagged(stored("a tag", &format!("{key}={value}"))?),
        _ => Devices::All,
    };
    let accounts: Vec<String> = row.try_get("accounts")?;
    Ok(Permission {
        id: row.try_get("id")?,
        holder,
        devices,
        target: text("target")?.map(|target| stored("a target", target)).transpose()?,
        terms: Terms {
            accounts: accounts
                .iter()
                .map(|account| stored("an account", account))
                .collect::<Result<_, _>>()?,
            max_tunnels: number("max_tunnels")?,
            max_ttl_s: number("max_ttl_s")?,
            share: row.try_get("share")?,
        },
    })
}

impl Store {
    /// Lets a user or the members of a group open targets of devices; without targets, all of them. A grant that is
    /// there already gets the new terms.
    ///
    /// # Errors
    /// When the holder or the device is not registered.
    pub async fn add_grant(
        &self,
        holder: &Grantee,
        devices: &Devices,
        targets: &[Target],
        terms: &Terms,
    ) -> Result<Vec<i64>, StoreError> {
        let targets: Vec<Option<String>> = match targets {
            [] => vec![None],
            some => some.iter().map(|target| Some(target.to_string())).collect(),
        };
        let (device, tag) = match devices {
            Devices::One(device) => (Some(device), None),
            Devices::Tagged(tag) => (None, Some(tag)),
            Devices::All => (None, None),
        };
        let (user, group) = holder.columns();
        self.within(async {
            if let Some(user) = user {
                self.require("user", "SELECT 1 FROM users WHERE id = $1", user).await?;
            }
            if let Some(group) = group {
                self.require("group", "SELECT 1 FROM groups WHERE id = $1", group)
                    .await?;
            }
            if let Some(device) = device {
                self.require("device", "SELECT 1 FROM devices WHERE id = $1", device.as_str())
                    .await?;
            }
            let rows: Vec<(i64,)> = sqlx::query_as(
                "INSERT INTO grants (user_id, group_id, device_id, tag_key, tag_value, target, accounts, max_tunnels,
                                     max_ttl_s, share)
                 SELECT $1, $2, $3, $4, $5, unnest($6::text[]), $7, $8, $9, $10
                 ON CONFLICT ON CONSTRAINT grants_once DO UPDATE SET accounts = excluded.accounts,
                     max_tunnels = excluded.max_tunnels, max_ttl_s = excluded.max_ttl_s, share = excluded.share
                 RETURNING id",
            )
            .bind(user)
            .bind(group)
            .bind(device.map(DeviceId::as_str))
            .bind(tag.map(Tag::key))
            .bind(tag.map(Tag::value))
            .bind(targets)
            .bind(terms.accounts.iter().map(Account::as_str).collect::<Vec<_>>())
            .bind(terms.max_tunnels.map(limit))
            .bind(terms.max_ttl_s.map(limit))
            .bind(terms.share)
            .fetch_all(&self.pool)
            .await?;
            Ok(rows.into_iter().map(|(id,)| id).collect())
        })
        .await
    }

    /// Lists grants: all, or those that a user holds directly or by a group.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn grants(&self, user: Option<&UserId>) -> Result<Vec<Permission>, StoreError> {
        self.within(async {
            let rows = sqlx::query(concat!(
                "SELECT ",
                grant_columns!(),
                " FROM grants g WHERE $1::text IS NULL OR g.user_id = $1
                     OR g.group_id IN (SELECT m.group_id FROM group_members m WHERE m.user_id = $1)
                 ORDER BY g.id"
            ))
            .bind(user.map(UserId::as_str))
            .fetch_all(&self.pool)
            .await?;
            rows.iter().map(read).collect()
        })
        .await
    }

    /// Takes a grant away, and closes the tunnels that no other grant covers. Returns the grant and how many tunnels
    /// were closed; `None` when there is no such grant.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn remove_grant(&self, id: i64) -> Result<Option<(Permission, u64)>, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let found = sqlx::query(concat!("SELECT ", grant_columns!(), " FROM grants g WHERE g.id = $1"))
                .bind(id)
                .fetch_optional(&mut *tx)
                .await?;
            let Some(row) = found else { return Ok(None) };
            let permission = read(&row)?;
            let (user, group) = permission.holder.columns();
            let holders = lock_holders(&mut tx, user, group).await?;
            sqlx::query("DELETE FROM grants WHERE id = $1")
                .bind(id)
                .execute(&mut *tx)
                .await?;
            let closed = withdraw(&mut tx, Some(&holders), None).await?;
            tx.commit().await?;
            Ok(Some((permission, closed)))
        })
        .await
    }

    /// Makes a group.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn add_group(&self, group: &GroupId) -> Result<(), StoreError> {
        self.within(async {
            sqlx::query("INSERT INTO groups (id) VALUES ($1) ON CONFLICT DO NOTHING")
                .bind(group.as_str())
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    /// Takes a group away with its grants, and closes the tunnels that no other grant covers; returns how many.
    ///
    /// # Errors
    /// When there is no such group.
    pub async fn remove_group(&self, group: &GroupId) -> Result<u64, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let holders = lock_holders(&mut tx, None, Some(group.as_str())).await?;
            let removed = sqlx::query("DELETE FROM groups WHERE id = $1")
                .bind(group.as_str())
                .execute(&mut *tx)
                .await?;
            if removed.rows_affected() == 0 {
                return Err(unknown_group(group));
            }
            let closed = withdraw(&mut tx, Some(&holders), None).await?;
            tx.commit().await?;
            Ok(closed)
        })
        .await
    }

    /// Lists groups with their members.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn groups(&self) -> Result<Vec<(GroupId, Vec<UserId>)>, StoreError> {
        self.within(async {
            let rows: Vec<(String, Vec<String>)> = sqlx::query_as(
                "SELECT g.id, coalesce(array_agg(m.user_id ORDER BY m.user_id) FILTER (WHERE m.user_id IS NOT NULL), '{}')
                 FROM groups g LEFT JOIN group_members m ON m.group_id = g.id GROUP BY g.id ORDER BY g.id",
            )
            .fetch_all(&self.pool)
            .await?;
            rows.into_iter()
                .map(|(group, members)| {
                    let members = members.iter().map(|user| stored("a user", user)).collect::<Result<_, _>>()?;
                    Ok((stored("a group", &group)?, members))
                })
                .collect()
        })
        .await
    }

    /// Puts a user into a group.
    ///
    /// # Errors
    /// When either is unknown.
    pub async fn add_member(&self, group: &GroupId, user: &UserId) -> Result<(), StoreError> {
        self.within(async {
            self.require("user", "SELECT 1 FROM users WHERE id = $1", user.as_str())
                .await?;
            self.require("group", "SELECT 1 FROM groups WHERE id = $1", group.as_str())
                .await?;
            sqlx::query("INSERT INTO group_members (group_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(group.as_str())
                .bind(user.as_str())
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    /// Takes a user out of a group, and closes the tunnels that no other grant covers; returns how many.
    ///
    /// # Errors
    /// When the user is no member.
    pub async fn remove_member(&self, group: &GroupId, user: &UserId) -> Result<u64, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let holders = lock_holders(&mut tx, Some(user.as_str()), None).await?;
            let removed = sqlx::query("DELETE FROM group_members WHERE group_id = $1 AND user_id = $2")
                .bind(group.as_str())
                .bind(user.as_str())
                .execute(&mut *tx)
                .await?;
            if removed.rows_affected() == 0 {
                return Err(StoreError::Unknown {
                    kind: "member of the group",
                    name: user.to_string(),
                });
            }
            let closed = withdraw(&mut tx, Some(&holders), None).await?;
            tx.commit().await?;
            Ok(closed)
        })
        .await
    }

    /// Sets and takes away tags of a device, and closes the tunnels that no grant covers any more; returns how many.
    ///
    /// # Errors
    /// When the device is not registered.
    pub async fn tag_device(&self, device: &DeviceId, set: &[Tag], remove: &[String]) -> Result<u64, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let known: Option<(i32,)> = sqlx::query_as("SELECT 1 FROM devices WHERE id = $1 FOR NO KEY UPDATE")
                .bind(device.as_str())
                .fetch_optional(&mut *tx)
                .await?;
            if known.is_none() {
                return Err(StoreError::Unknown {
                    kind: "device",
                    name: device.to_string(),
                });
            }
            sqlx::query("DELETE FROM device_tags WHERE device_id = $1 AND key = ANY($2)")
                .bind(device.as_str())
                .bind(remove)
                .execute(&mut *tx)
                .await?;
            for tag in set {
                sqlx::query(
                    "INSERT INTO device_tags (device_id, key, value) VALUES ($1, $2, $3)
                     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value",
                )
                .bind(device.as_str())
                .bind(tag.key())
                .bind(tag.value())
                .execute(&mut *tx)
                .await?;
            }
            let closed = withdraw(&mut tx, None, Some(device)).await?;
            tx.commit().await?;
            Ok(closed)
        })
        .await
    }

    /// Explains whether a user may open a target of a device: by the very function that decides when it is opened.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn explain(&self, user: &UserId, device: &DeviceId, target: &Target) -> Result<Explanation, StoreError> {
        self.within(async {
            let (known_user, known_device, revoked): (bool, bool, Option<String>) = sqlx::query_as(
                "SELECT EXISTS (SELECT FROM users WHERE id = $1), EXISTS (SELECT FROM devices WHERE id = $2),
                        (SELECT min(name) FROM identities WHERE name IN ($1, $2) AND revoked_at IS NOT NULL)",
            )
            .bind(user.as_str())
            .bind(device.as_str())
            .fetch_one(&self.pool)
            .await?;
            let obstacle = match (known_user, known_device, revoked) {
                (false, ..) => Some(format!("{user} is not a registered user")),
                (_, false, _) => Some(format!("{device} is not a registered device")),
                (.., Some(name)) => Some(format!("{name} is revoked")),
                _ => None,
            };
            let rows = sqlx::query(concat!(
                "SELECT ",
                grant_columns!(),
                ", g.id IN (SELECT p.id FROM permits($1, $2, $3) p) AS allows,
                        g.id IN (SELECT p.id FROM permits($1, $2, NULL) p) AS covers
                 FROM held_grants g WHERE g.holder = $1 ORDER BY allows DESC, covers DESC, g.id"
            ))
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(target.to_string())
            .fetch_all(&self.pool)
            .await?;
            let grants: Vec<(Verdict, Permission)> = rows
                .iter()
                .map(|row| {
                    let verdict = match (row.try_get("allows")?, row.try_get("covers")?) {
                        (true, _) => Verdict::Matches,
                        (false, true) => Verdict::OtherTarget,
                        (false, false) => Verdict::OtherDevice,
                    };
                    Ok::<_, StoreError>((verdict, read(row)?))
                })
                .collect::<Result<_, _>>()?;
            let allowed = obstacle.is_none() && grants.iter().any(|(verdict, _)| *verdict == Verdict::Matches);
            Ok(Explanation {
                allowed,
                obstacle,
                grants,
            })
        })
        .await
    }

    /// The accounts that a user may log in to at a device's own sshd: those that the grants name, and `defaults` by a
    /// grant that names none.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn accounts_of(
        &self,
        user: &UserId,
        device: &DeviceId,
        defaults: &[Account],
    ) -> Result<Vec<Account>, StoreError> {
        self.within(async {
            let rows: Vec<(String,)> = sqlx::query_as(
                "SELECT DISTINCT unnest(CASE p.accounts WHEN '{}' THEN $3 ELSE p.accounts END)
                 FROM permits($1, $2, 'localhost:22') p ORDER BY 1",
            )
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(defaults.iter().map(Account::as_str).collect::<Vec<_>>())
            .fetch_all(&self.pool)
            .await?;
            rows.iter().map(|(account,)| stored("an account", account)).collect()
        })
        .await
    }

    /// Whether a user may hand names of a device's target to others.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn may_share(&self, user: &UserId, device: &DeviceId, target: &Target) -> Result<bool, StoreError> {
        self.within(async {
            let (may,): (bool,) = sqlx::query_as("SELECT EXISTS (SELECT FROM permits($1, $2, $3) p WHERE p.share)")
                .bind(user.as_str())
                .bind(device.as_str())
                .bind(target.to_string())
                .fetch_one(&self.pool)
                .await?;
            Ok(may)
        })
        .await
    }

    pub(super) async fn require(&self, kind: &'static str, sql: &'static str, name: &str) -> Result<(), StoreError> {
        let found: Option<(i32,)> = sqlx::query_as(sql).bind(name).fetch_optional(&self.pool).await?;
        found.map(|_| ()).ok_or_else(|| StoreError::Unknown {
            kind,
            name: name.to_owned(),
        })
    }
}

/// Locks the users that lose something, in order, so that none of their requests is half-way through its check.
async fn lock_holders(
    connection: &mut PgConnection,
    user: Option<&str>,
    group: Option<&str>,
) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT u.id FROM users u
         WHERE u.id = $1 OR u.id IN (SELECT user_id FROM group_members WHERE group_id = $2)
         ORDER BY u.id FOR NO KEY UPDATE",
    )
    .bind(user)
    .bind(group)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

fn unknown_group(group: &GroupId) -> StoreError {
    StoreError::Unknown {
        kind: "group",
        name: group.to_string(),
    }
}

/// A limit as the database keeps it.
pub(super) fn limit(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
