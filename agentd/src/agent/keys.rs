//! Keeps the users' keys in authorized_keys while they are good: fetched from a server whenever a tunnel comes or goes,
//! and now and then while there is one; taken out when their time is over, whatever the network does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rssh_mqtt::Identity;
use rssh_mqtt::https::Client;
use rssh_proto::enrolment::{AuthorizedKeys, AuthorizedKeysRequest};
use rssh_proto::{Account, Failure, FailureKind};
use tokio::sync::{mpsc, oneshot};

use crate::authorized_keys::{self, Login};
use crate::config::Config;

/// How often the servers are asked while a tunnel or a key is there.
const AGAIN: Duration = Duration::from_secs(10);
/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an order waits for its user's key: the server gives a device two seconds to answer.
const HEAD_START: Duration = Duration::from_millis(800);

/// Tells the keeper to look again; it says when it has.
type Look = Option<oneshot::Sender<()>>;

/// What the agent's loop has of the keeper.
pub(super) struct Keys {
    looks: mpsc::Sender<Look>,
    /// Whether there is a tunnel.
    busy: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Keys {
    /// Begins to keep them, where the configuration names a file to keep them in.
    pub(super) fn start(config: &Config) -> Option<Self> {
        if cfg!(not(feature = "enrolment")) || config.authorized_keys.is_empty() {
            return None;
        }
        let (looks, asked) = mpsc::channel(16);
        let busy = Arc::<AtomicBool>::default();
        let keeper = Keeper {
            config: config.clone(),
            busy: busy.clone(),
            held: Vec::new(),
        };
        Some(Self {
            looks,
            busy,
            task: tokio::spawn(keeper.run(asked)),
        })
    }

    /// Has the servers asked; what comes back is ready when the file is as they say, or soon at the latest.
    pub(super) fn look(&self) -> impl Future<Output = ()> + use<> {
        let (done, looked) = oneshot::channel();
        // Where so many wait already, one of theirs does as well.
        let _ = self.looks.try_send(Some(done));
        async {
            let _ = tokio::time::timeout(HEAD_START, looked).await;
        }
    }

    /// Whether there is a tunnel; the servers are asked now and then while there is.
    pub(super) fn set_busy(&self, busy: bool) {
        if !self.busy.swap(busy, Ordering::Relaxed) && busy {
            let _ = self.looks.try_send(None);
        }
    }

    /// Takes every key out.
    pub(super) async fn finish(self, within: Duration) {
        drop(self.looks);
        if tokio::time::timeout(within, self.task).await.is_err() {
            tracing::warn!("users' keys are still in authorized_keys");
        }
    }

    /// Leaves them to the next agent.
    pub(super) fn leave(self) {
        self.task.abort();
    }
}

/// A key that is good for a while.
struct Held {
    account: Account,
    login: Login,
    end: Instant,
}

struct Keeper {
    config: Config,
    busy: Arc<AtomicBool>,
    held: Vec<Held>,
}

impl Keeper {
    async fn run(mut self, mut looks: mpsc::Receiver<Look>) {
        // What an agent before this one has left is good only if the servers say so.
        self.fetch().await;
        self.write();
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                look = looks.recv() => match look {
                    Some(look) => waiting.extend(look),
                    None => break,
                },
                () = self.due() => {}
            }
            while let Ok(look) = looks.try_recv() {
                waiting.extend(look);
            }
            self.fetch().await;
            self.write();
            for look in waiting {
                // Who no longer waits is no fault.
                let _ = look.send(());
            }
        }
        self.held.clear();
        self.write();
    }

    /// Waits until there is something to do.
    async fn due(&self) {
        let again = (self.busy.load(Ordering::Relaxed) || !self.held.is_empty()).then(|| Instant::now() + AGAIN);
        let end = self.held.iter().map(|held| held.end).min();
        match again.into_iter().chain(end).min() {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    async fn fetch(&mut self) {
        let asked = tokio::time::timeout(PATIENCE, self.ask()).await;
        let late = || Failure::new(FailureKind::NobodyServing, "the servers do not answer");
        match asked.unwrap_or_else(|_| Err(late())) {
            Ok(held) => self.held = held,
            // This device is nobody any more.
            Err(failure) if failure.kind == FailureKind::Denied => {
                tracing::warn!(%failure, "users' keys are taken out of authorized_keys");
                self.held.clear();
            }
            Err(failure) => tracing::info!(%failure, "cannot ask for users' keys"),
        }
        let now = Instant::now();
        self.held.retain(|held| held.end > now);
    }

    async fn ask(&self) -> Result<Vec<Held>, Failure> {
        let local = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Configuration, error.to_string());
        let url = self.config.url.clone().ok_or_else(|| local(&"no url"))?;
        let identity = Identity::load(&self.config.identity()).map_err(|error| local(&error))?;
        let client = Client::new(url, &identity)
            .map_err(|error| local(&error))?
            .by(self.config.proxies().map_err(|error| local(&error))?);
        let accounts = self.config.authorized_keys.keys().cloned().collect();
        let asked = AuthorizedKeysRequest { accounts };
        let answer: AuthorizedKeys = client.post("/v1/device/authorized-keys", &asked).await?;
        let now = Instant::now();
        let held = answer.keys.into_iter().filter_map(|key| {
            // The servers check it too; this line goes into a file that opens this device.
            let parsed = key.public_key.parse().ok();
            let plain = parsed.filter(rssh_proto::ssh_key::PublicKey::is_plain)?;
            Some(Held {
                account: key.account,
                login: Login {
                    user: key.user,
                    key: plain,
                },
                end: now + Duration::from_secs(key.valid_s.into()),
            })
        });
        Ok(held.collect())
    }

    fn write(&self) {
        let mut of: BTreeMap<&PathBuf, Vec<Login>> = BTreeMap::new();
        for (account, path) in &self.config.authorized_keys {
            let logins = self.held.iter().filter(|held| held.account == *account);
            of.entry(path)
                .or_default()
                .extend(logins.map(|held| held.login.clone()));
        }
        for (path, logins) in of {
            match authorized_keys::write(path, &logins) {
                Ok(true) => tracing::info!(path = %path.display(), keys = logins.len(), "users' keys"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "cannot keep users' keys"),
            }
        }
    }
}
