//! Bearer names: for how long a port is named by one.

use rssh_proto::{Epoch, ServerId, TunnelId};

use super::{Store, StoreError, counter};

impl Store {
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
