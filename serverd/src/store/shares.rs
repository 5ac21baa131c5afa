//! Bearer names: who may have one, and for how long a port is named by one.

use rssh_proto::{DeviceId, Epoch, ServerId, Target, TunnelId, UserId};

use super::{Store, StoreError, counter};

impl Store {
    /// Whether a user may let others in to a target. Whoever may open it may.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn may_share(&self, user: &UserId, device: &DeviceId, target: &Target) -> Result<bool, StoreError> {
        self.within(async {
            let (may,): (bool,) = sqlx::query_as(
                "SELECT EXISTS (SELECT 1 FROM grants WHERE user_id = $1 AND (device_id = $2 OR device_id IS NULL)
                                                       AND (target = $3 OR target IS NULL))",
            )
            .bind(user.as_str())
            .bind(device.as_str())
            .bind(target.to_string())
            .fetch_one(&self.pool)
            .await?;
            Ok(may)
        })
        .await
    }

    /// Notes that a port of this server is named for so many seconds from now; returns whether the tunnel still holds it.
    /// A name may be given away only then.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn note_name(
        &self,
        server: &ServerId,
        port: u16,
        tunnel: TunnelId,
        epoch: Epoch,
        for_s: u32,
    ) -> Result<bool, StoreError> {
        self.within(async {
            let noted = sqlx::query(
                "UPDATE leases SET named_until = greatest(named_until, clock_timestamp() + $5 * interval '1 s')
                 WHERE server_id = $1 AND port = $2 AND tunnel_id = $3 AND epoch = $4 AND released_at IS NULL",
            )
            .bind(server.as_str())
            .bind(i32::from(port))
            .bind(tunnel.uuid())
            .bind(counter(epoch.0))
            .bind(f64::from(for_s))
            .execute(&self.pool)
            .await?;
            Ok(noted.rows_affected() > 0)
        })
        .await
    }
}
