//! What an agent needs before it runs: all that can be wrong with its configuration shows here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rssh_mqtt::renewal::Renewable;
use rssh_mqtt::{Dial, Settings, Will};
use rssh_proto::InstanceId;
use rssh_proto::payload::{self, Presence};
use rssh_proto::topic::Topic;

use super::voice::status;
use crate::config::Config;
use crate::generation::Generations;
use crate::rundir::RunDir;
use crate::ssh::inherit::Inherited;
use crate::ssh::{Ssh, config as ssh_config};

/// How many acknowledged publishes may be under way; each costs memory for as long as the agent runs.
const INFLIGHT: u16 = 16;
/// How many messages may wait for the loop, and how many for the network.
const QUEUE: usize = 16;
/// Spread of the pause before the broker is tried again, at first and at most.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// An agent whose configuration was found good: all that can be wrong with it is known by now.
pub struct Prepared {
    pub(super) config: Config,
    pub(super) ssh: Ssh,
    /// What an earlier agent left running.
    pub(super) inherited: Vec<Inherited>,
    pub(super) settings: Settings,
    pub(super) renewable: Arc<Renewable>,
    /// Of the connect that is up or was tried last.
    pub(super) generation: Arc<AtomicU64>,
    pub(super) instance: InstanceId,
}

impl Prepared {
    /// Checks what the configuration names, and finds what an earlier agent left.
    ///
    /// # Errors
    /// When a part of it cannot be used.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        config.check_ssh()?;
        let renewable = Renewable::load(&config.identity())?;
        let tls = renewable.client_config()?;
        let proxies = config.proxies()?;
        let ssh = prepare_ssh(&config)?.by(proxies.clone(), config.ssh.lb.clone());
        let inherited = ssh.inherit(&config.device).context("cannot clear the run directory")?;
        let generation = Arc::new(AtomicU64::new(0));
        let instance = InstanceId::generate();
        let settings = Settings {
            brokers: config.mqtt.brokers.clone(),
            tls: Arc::new(tls),
            cn: config.device.to_string(),
            keep_alive: config.mqtt.keep_alive.duration(),
            inflight: INFLIGHT,
            queue: QUEUE,
            subscriptions: vec![
                Topic::DeviceOpen(config.device.clone()).to_string(),
                Topic::DeviceClose(config.device.clone()).to_string(),
            ],
            will: Some(will_of(&config, &generation, &instance)),
            reconnect: RECONNECT,
            dial: Dial {
                roams: true,
                proxies,
                ..Dial::default()
            },
        };
        Ok(Self {
            config,
            ssh,
            inherited,
            settings,
            renewable,
            generation,
            instance,
        })
    }
}

fn prepare_ssh(config: &Config) -> anyhow::Result<Ssh> {
    let run = RunDir::open(&config.state_dir, &config.device)?;
    let aes = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| ssh_config::has_aes(&text));
    let file = run.ssh_config();
    std::fs::write(&file, ssh_config::render(&config.ssh, aes))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Ssh::new(&config.ssh.program, run))
}

/// Makes the will of each connect, which carries the generation that the connect draws.
fn will_of(config: &Config, generation: &Arc<AtomicU64>, instance: &InstanceId) -> rssh_mqtt::WillOf {
    let generations = Mutex::new(Generations::load(&config.state_dir));
    let (device, generation, instance) = (config.device.clone(), generation.clone(), instance.clone());
    Box::new(move || {
        let clock = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let drawn = generations.lock().unwrap_or_else(PoisonError::into_inner).draw(clock);
        generation.store(drawn.0, Ordering::Relaxed);
        Will {
            topic: Topic::DeviceStatus(device.clone()).to_string(),
            payload: payload::encode(&status(Presence::Offline, drawn, &instance, vec![])),
        }
    })
}
