//! Drops what ended long ago, so that the database does not grow for ever.

use std::sync::Arc;
use std::time::Duration;

use crate::server::Server;

/// How often each server looks.
const EVERY: Duration = Duration::from_secs(600);

/// Drops tunnels that ended longer ago than the configuration keeps them, a batch at a time; for ever.
pub async fn run(server: Arc<Server>) {
    loop {
        tokio::time::sleep(EVERY).await;
        match drop_all(&server).await {
            Ok(0) => {}
            Ok(tunnels) => tracing::info!(tunnels, "dropped tunnels that ended long ago"),
            Err(error) => tracing::warn!(%error, "cannot drop tunnels that ended long ago; the next look is in 10 min"),
        }
    }
}

async fn drop_all(server: &Server) -> Result<u64, crate::store::StoreError> {
    let mut dropped = 0;
    loop {
        let (tunnels, more) = server.store.drop_over(server.config.tunnels.history).await?;
        dropped += tunnels;
        if !more {
            return Ok(dropped);
        }
    }
}
