//! How much each may have: concurrent tunnels and opens per minute, of a user, a device and a group.
//!
//! Counted inside the transaction that opens, under locks on the rows that are counted: a bare count lets several
//! requests through that come at the same moment.

use rssh_proto::{DeviceId, Failure, GroupId, UserId};

use super::grants::limit;
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
pub(super) fn refusal(usage: &Usage) -> Option<Failure> {
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
}

/// That the grants of a user for a device allow no further tunnel at once.
pub(super) fn grant_is_used_up(user: &UserId, device: &DeviceId) -> Failure {
    let message =
        format!("{user} has as many tunnels to {device} and its like as the grant allows; close one, or wait");
    Failure::busy(message, TUNNEL_FREES_S)
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
        assert_eq!(refusal(&usage(None, None, 1_000_000, 1_000_000)), None);
        assert_eq!(refusal(&usage(Some(3), Some(5), 2, 4)), None);
        assert!(refusal(&usage(Some(3), None, 3, 0)).is_some());
        assert!(refusal(&usage(Some(0), None, 0, 0)).is_some());
        let all_used = refusal(&usage(Some(9), Some(5), 2, 5)).unwrap();
        assert_eq!((all_used.kind, all_used.retry_after_s), (FailureKind::Busy, Some(17)));
        assert!(all_used.message().contains("retry after 17 s"), "{all_used}");
    }
}
