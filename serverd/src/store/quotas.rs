//! How much each may have: concurrent tunnels and opens per minute, of a user, a device and a group.
//!
//! Counted inside the transaction that opens, under locks on the rows that are counted: a bare count lets several
//! requests through that come at the same moment.

use rssh_proto::{DeviceId, Failure, GroupId, UserId};
use sqlx::postgres::PgConnection;

use super::grants::limit;
use super::tunnels::live;
use super::{Store, StoreError};

/// The limits of whoever has none of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    pub user_tunnels: u32,
    pub user_opens_per_minute: u32,
    pub device_tunnels: u32,
    pub device_opens_per_minute: u32,
}

/// Whose limit it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limited {
    User(UserId),
    Device(DeviceId),
    Group(GroupId),
}

/// What one of them has used of what it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    /// As it is named in a message.
    pub who: String,
    pub max_tunnels: Option<i32>,
    pub opens_per_minute: Option<i32>,
    pub tunnels: i64,
    pub opens: i64,
    /// In how many seconds the oldest open of the last minute no longer counts.
    pub frees_in_s: i64,
}

/// How long to wait for someone to close a tunnel: nobody knows.
const TUNNEL_FREES_S: u32 = 10;

/// Why one more tunnel would be too many; `None` when it is not.
pub(super) fn refusal(usages: &[Usage]) -> Option<Failure> {
    usages.iter().find_map(|usage| {
        let who = &usage.who;
        if let Some(most) = usage.max_tunnels.filter(|most| usage.tunnels >= i64::from(*most)) {
            let message = format!(
                "{who} has {} tunnels of at most {most}; close one, or wait",
                usage.tunnels
            );
            return Some(Failure::busy(message, TUNNEL_FREES_S));
        }
        let most = usage.opens_per_minute.filter(|most| usage.opens >= i64::from(*most))?;
        let wait = u32::try_from(usage.frees_in_s.clamp(1, 60)).unwrap_or(60);
        let message = format!("{who} has opened {most} tunnels within a minute, its limit; retry after {wait} s");
        Some(Failure::busy(message, wait))
    })
}

/// That the grants of a user for a device allow no further tunnel at once.
pub(super) fn grant_is_used_up(user: &UserId, device: &DeviceId) -> Failure {
    let message =
        format!("{user} has as many tunnels to {device} and its like as the grant allows; close one, or wait");
    Failure::busy(message, TUNNEL_FREES_S)
}

/// Locks whatever an open counts, in the store's order: the user, the groups that have limits, the device.
pub(super) async fn lock(connection: &mut PgConnection, user: &UserId, device: &DeviceId) -> Result<(), StoreError> {
    // Each part waits for the one it names. What is decided is read by a later statement, which sees what those who
    // held the locks have done.
    sqlx::query(
        "WITH u AS MATERIALIZED (SELECT id FROM users WHERE id = $1 FOR NO KEY UPDATE),
              g AS MATERIALIZED (
                  SELECT g.id FROM u JOIN group_members m ON m.user_id = u.id JOIN groups g ON g.id = m.group_id
                  WHERE g.max_tunnels IS NOT NULL OR g.opens_per_minute IS NOT NULL
                  ORDER BY g.id FOR NO KEY UPDATE OF g),
              d AS MATERIALIZED (
                  SELECT id FROM devices WHERE id = $2 AND (SELECT count(*) FROM g) >= 0 FOR NO KEY UPDATE)
         SELECT count(*) FROM d",
    )
    .bind(user.as_str())
    .bind(device.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// What everyone concerned has used.
pub(super) async fn usages(
    connection: &mut PgConnection,
    user: &UserId,
    device: &DeviceId,
    quotas: &Quotas,
) -> Result<Vec<Usage>, StoreError> {
    type Row = (String, Option<i32>, Option<i32>, i64, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(concat!(
        "WITH limited AS (
             SELECT 1 AS rank, id AS who, coalesce(max_tunnels, $3) AS max_tunnels,
                    coalesce(opens_per_minute, $4) AS opens_per_minute, ARRAY[id] AS users, NULL AS device
             FROM users WHERE id = $1
             UNION ALL
             SELECT 2, id, coalesce(max_tunnels, $5), coalesce(opens_per_minute, $6), NULL, id
             FROM devices WHERE id = $2
             UNION ALL
             SELECT 3, 'the group ' || g.id, g.max_tunnels, g.opens_per_minute,
                    ARRAY(SELECT o.user_id FROM group_members o WHERE o.group_id = g.id), NULL
             FROM groups g JOIN group_members m ON m.group_id = g.id
             WHERE m.user_id = $1 AND (g.max_tunnels IS NOT NULL OR g.opens_per_minute IS NOT NULL))
         SELECT l.who, l.max_tunnels, l.opens_per_minute, alive.count, recent.count,
                ceil(extract(epoch FROM coalesce(recent.oldest, clock_timestamp()) + interval '1 min'
                                        - clock_timestamp()))::bigint
         FROM limited l,
              LATERAL (SELECT count(*) FROM tunnels t
                       WHERE (t.user_id = ANY(l.users) OR t.device_id = l.device) AND t.state IN ",
        live!(),
        ") alive,
              LATERAL (SELECT count(*), min(t.created_at) AS oldest FROM tunnels t
                       WHERE (t.user_id = ANY(l.users) OR t.device_id = l.device)
                         AND t.created_at > clock_timestamp() - interval '1 min') recent
         ORDER BY l.rank, l.who"
    ))
    .bind(user.as_str())
    .bind(device.as_str())
    .bind(limit(quotas.user_tunnels))
    .bind(limit(quotas.user_opens_per_minute))
    .bind(limit(quotas.device_tunnels))
    .bind(limit(quotas.device_opens_per_minute))
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(
            |(who, max_tunnels, opens_per_minute, tunnels, opens, frees_in_s)| Usage {
                who,
                max_tunnels,
                opens_per_minute,
                tunnels,
                opens,
                frees_in_s,
            },
        )
        .collect())
}

impl Store {
    /// Gives someone limits of their own; `None` gives back the configuration's.
    ///
    /// # Errors
    /// When there is no such user, device or group.
    pub async fn set_limits(
        &self,
        who: &Limited,
        max_tunnels: Option<u32>,
        opens_per_minute: Option<u32>,
    ) -> Result<(), StoreError> {
        let (kind, name, sql) = match who {
            Limited::User(user) => (
                "user",
                user.as_str(),
                "UPDATE users SET max_tunnels = $2, opens_per_minute = $3 WHERE id = $1",
            ),
            Limited::Device(device) => (
                "device",
                device.as_str(),
                "UPDATE devices SET max_tunnels = $2, opens_per_minute = $3 WHERE id = $1",
            ),
            Limited::Group(group) => (
                "group",
                group.as_str(),
                "UPDATE groups SET max_tunnels = $2, opens_per_minute = $3 WHERE id = $1",
            ),
        };
        self.within(async {
            let done = sqlx::query(sql)
                .bind(name)
                .bind(max_tunnels.map(limit))
                .bind(opens_per_minute.map(limit))
                .execute(&self.pool)
                .await?;
            match done.rows_affected() {
                0 => Err(StoreError::Unknown {
                    kind,
                    name: name.to_owned(),
                }),
                _ => Ok(()),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use rssh_proto::FailureKind;

    use super::*;

    fn usage(max_tunnels: Option<i32>, opens_per_minute: Option<i32>, tunnels: i64, opens: i64) -> Usage {
        Usage {
            who: "alice".to_owned(),
            max_tunnels,
            opens_per_minute,
            tunnels,
            opens,
            frees_in_s: 17,
        }
    }

    #[test]
    fn one_more_is_too_many_at_the_limit_and_not_below() {
        assert_eq!(refusal(&[]), None);
        assert_eq!(refusal(&[usage(None, None, 1_000_000, 1_000_000)]), None);
        assert_eq!(refusal(&[usage(Some(3), Some(5), 2, 4)]), None);
        assert!(refusal(&[usage(Some(3), None, 3, 0)]).is_some());
        assert!(refusal(&[usage(Some(0), None, 0, 0)]).is_some());
        let all_used = refusal(&[usage(Some(3), None, 2, 0), usage(Some(9), Some(5), 2, 5)]).unwrap();
        assert_eq!((all_used.kind, all_used.retry_after_s), (FailureKind::Busy, Some(17)));
        assert!(all_used.message().contains("retry after 17 s"), "{all_used}");
    }
}
