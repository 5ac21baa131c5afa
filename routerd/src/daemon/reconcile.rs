//! Making the files and HAProxy equal to what is known, and saying so.

use std::collections::{BTreeMap, BTreeSet};

use rssh_mqtt::Publish;
use rssh_proto::payload::{Presence, RouterStatus, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{ServerId, payload};
use tokio::time::Instant;

use super::Daemon;
use crate::desired::{Desired, Map, Rows};
use crate::plan::{Command, plan};
use crate::runtime::Outcome;
use crate::source::Led;

/// Where users are to be led.
fn leads(desired: &Desired) -> Led {
    desired.maps.get(&Map::Addresses).map(led).unwrap_or_default()
}

fn led(rows: &Rows) -> Led {
    let parsed = rows
        .iter()
        .filter_map(|(server, address)| Some((server.parse().ok()?, address.parse().ok()?)));
    parsed.collect()
}

impl Daemon {
    pub(super) async fn reconcile(&mut self) -> anyhow::Result<()> {
        let desired = self.routes.desired(&self.local);
        let conflicts: Vec<String> = self
            .routes
            .conflicts()
            .into_iter()
            .map(|(server, holder)| format!("{server} is not routed: its address is {holder}'s"))
            .collect();
        self.fault("addresses", (!conflicts.is_empty()).then(|| conflicts.join("; ")));
        if let Some(actual) = &self.actual {
            let commands = plan(&desired, actual);
            if commands.iter().all(|command| command.can_wait(actual)) {
                return self.publish(&desired);
            }
        }
        // Files first: whatever happens to HAProxy from here on, it starts from them.
        self.files.write(&desired)?;
        self.state.save(&self.routes)?;
        if self.actual.is_none() {
            self.worker = Some(self.runtime.worker().await?);
            self.actual = Some(self.runtime.actual().await?);
            self.reconcile_at = Instant::now() + self.config.registry.reconcile.duration();
        }
        // First what may come, then what is: whoever reads it misses no route.
        let mut led = leads(&desired);
        led.extend(self.led_now());
        self.shared.set_led(led);
        if self.tell(&desired).await? {
            self.map_generation += 1;
        }
        self.shared.set_led(self.led_now());
        self.publish(&desired)
    }

    /// Where HAProxy leads users now, as far as is known.
    fn led_now(&self) -> Led {
        let rows = self.actual.as_ref().and_then(|actual| actual.maps.get(&Map::Addresses));
        rows.map(|rows| led(&rows.rows)).unwrap_or_default()
    }

    /// Tells HAProxy what is missing. Returns whether there was anything.
    async fn tell(&mut self, desired: &Desired) -> anyhow::Result<bool> {
        let Some(actual) = &mut self.actual else {
            return Ok(false);
        };
        let mut changed = false;
        for command in plan(desired, actual) {
            match self.runtime.execute(&command).await? {
                Outcome::Done => {
                    if command.can_wait(actual) {
                        tracing::debug!("haproxy: {command:?}");
                    } else {
                        tracing::info!("haproxy: {command:?}");
                    }
                    actual.apply(&command);
                    changed = true;
                }
                Outcome::InUse => {
                    if let Command::ServerDelete(name) = &command {
                        tracing::debug!(name, "still carries connections");
                        actual.still_leaving(name);
                    }
                }
            }
        }
        Ok(changed)
    }

    /// Publishes our status when it has changed.
    fn publish(&mut self, desired: &Desired) -> anyhow::Result<()> {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let landing: BTreeSet<&ServerId> = desired
            .pool
            .iter()
            .filter(|(_, server)| server.enabled && server.weight > 0)
            .map(|(name, _)| &name.server)
            .collect();
        let status = RouterStatus {
            v: V1,
            presence: Presence::Online,
            map_generation: self.map_generation,
            routed: count(desired.maps.get(&Map::Addresses).map_or(0, BTreeMap::len)),
            landing: count(landing.len()),
            stale: self.routes.is_stale(),
        };
        self.metrics.reconciled(&status);
        // One that could not be sent is sent by the next pass.
        if self.published.as_ref() != Some(&status) && self.send(&status).is_ok() {
            self.published = Some(status);
        }
        Ok(())
    }

    fn send(&self, status: &RouterStatus) -> Result<(), rssh_mqtt::PublishError> {
        let topic = Topic::RouterStatus(self.config.router.clone());
        self.session
            .send(Publish::new(topic, payload::encode(status)).retained())
            .map(drop)
    }
}
