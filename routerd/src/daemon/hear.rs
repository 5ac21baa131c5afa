//! What the sources say: the registry's entries, the brokers' messages, local files.

use std::time::SystemTime;

use rssh_mqtt::{Event, Message};
use rssh_proto::payload::{ServerState, ServerStatus};
use rssh_proto::topic::Topic;
use rssh_proto::{ServerId, payload};

use super::Daemon;
use crate::route::Source;
use crate::source::Reading;

impl Daemon {
    /// Starts from the last good registry.
    pub(super) fn restore(&mut self) -> anyhow::Result<()> {
        let Some(entries) = self.state.load()? else {
            return Ok(());
        };
        self.settled = true;
        for (server, text) in entries {
            self.take_entry(&server, &text, Source::Database);
        }
        Ok(())
    }

    pub(super) fn take_reading(&mut self, reading: Reading) {
        match reading {
            Reading::Page(source, entries) => {
                for (server, text) in &entries {
                    self.take_entry(server, text, source);
                }
            }
            Reading::Redis(present) => {
                self.heard.0 = true;
                self.metrics.read(Source::Redis);
                self.fault("redis", None);
                self.routes.handle_redis(&present);
            }
            Reading::Changed(server, text) => {
                let new = !self.routes.knows(&server);
                self.take_entry(&server, &text, Source::Redis);
                if new && self.routes.knows(&server) {
                    self.shared.look.notify_one();
                }
            }
            Reading::Database { rows, known_before } => {
                self.heard.1 = true;
                self.settled = true;
                self.looks += 1;
                self.metrics.read(Source::Database);
                self.fault("postgresql", None);
                self.routes.handle_database(&rows, &known_before);
            }
            Reading::Revoked(Ok(users)) => {
                if users != self.local.revoked {
                    tracing::info!(count = users.len(), "users that are revoked");
                }
                self.fault("revocations", None);
                self.local.revoked = users;
            }
            Reading::Revoked(Err(reason)) => {
                let fault = format!("what was revoked before stays so: {reason}");
                self.fault("revocations", Some(fault));
            }
            Reading::Away { source, reason } => {
                self.routes.handle_away(source);
                let what = match source {
                    Source::Redis => {
                        self.heard.0 = true;
                        "redis"
                    }
                    Source::Database => {
                        self.heard.1 = true;
                        "postgresql"
                    }
                };
                self.fault(what, Some(format!("away, the last good routes stay: {reason}")));
            }
        }
        self.shared.set_known(self.routes.known());
    }

    fn take_entry(&mut self, server: &ServerId, text: &str, source: Source) {
        match self.verifier.verify(server, text, SystemTime::now()) {
            Ok(verified) => {
                self.refused.remove(server);
                self.routes.handle_registration(verified, source);
            }
            Err(error) => {
                let total = self.metrics.refused.inc() + 1;
                let reason = error.to_string();
                if self.refused.get(server) != Some(&reason) {
                    tracing::warn!(%server, ?source, total, "registration refused: {reason}");
                    self.refused.insert(server.clone(), reason);
                }
            }
        }
    }

    pub(super) fn take_event(&mut self, event: Event) {
        match event {
            Event::Up => {
                self.metrics.connects.inc();
                self.fault("mqtt", None);
                self.published = None;
            }
            Event::Down(down) => self.fault("mqtt", Some(down.to_string())),
            Event::Message(message) => self.take_message(&message),
        }
    }

    fn take_message(&mut self, message: &Message) {
        let Some(Topic::ServerStatus(server)) = Topic::parse(&message.topic) else {
            return;
        };
        // An empty one takes a retained status back; it says nothing about the server.
        if message.payload.is_empty() {
            return;
        }
        match payload::decode::<ServerStatus>(&message.payload) {
            Ok(status) => {
                if status.state != ServerState::Serving {
                    tracing::info!(%server, state = ?status.state, generation = %status.generation, "server says");
                }
                self.routes.handle_status(&server, &status);
            }
            Err(error) => tracing::warn!(%server, "status dropped: {error}"),
        }
    }

    /// Reads what comes from files: keys being changed, revocations.
    pub(super) fn read_local(&mut self) {
        let masters = self.config.masters().map(|(master, previous)| {
            self.local.master = master;
            self.local.previous = previous;
        });
        self.fault(
            "name-master",
            masters.err().map(|error| format!("the keys before stay: {error}")),
        );
        let revoked = self.files.revoked().map(|(users, serials)| {
            self.local.revoked_users = users;
            self.local.revoked_serials = serials;
        });
        self.fault(
            "revoked",
            revoked
                .err()
                .map(|error| format!("what was revoked before stays so: {error}")),
        );
    }
}
