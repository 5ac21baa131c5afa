//! `rssh-agentd check`: tries everything that a tunnel needs, from the device's own place in the network.

use std::sync::Arc;
use std::time::Duration;

use rssh_mqtt::dial::dial;
use rssh_mqtt::{Dial, Event, Identity, Session, Settings};
use rssh_proto::{HostPort, Target};
use tokio::net::TcpStream;

use crate::config::{Config, ConfigError};

/// How long each thing may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Checks the configuration and whom it names; prints a line for each. Whether all is well.
///
/// # Errors
/// When the configuration itself cannot be used.
pub async fn check(config: &Config) -> Result<bool, ConfigError> {
    config.check()?;
    println!("ok    configuration, keys and ssh");
    let mut well = true;
    let mut tell = |what: String, outcome: Result<(), String>| match outcome {
        Ok(()) => println!("ok    {what}"),
        Err(reason) => {
            well = false;
            println!("FAIL  {what}: {reason}");
        }
    };
    for broker in &config.mqtt.brokers {
        tell(format!("broker {broker}"), within(session(config, broker)).await);
    }
    if let Some(lb) = &config.ssh.lb {
        let proxies = config.proxies()?;
        let dialled = async { dial(lb, &proxies).await.map(drop).map_err(|error| error.to_string()) };
        tell(format!("load balancer {lb}"), within(dialled).await);
    }
    let named = config.targets.named.values();
    for target in config.targets.allow.iter().chain(named) {
        tell(format!("target {target}"), within(service(config, target)).await);
    }
    Ok(well)
}

async fn within(trying: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    tokio::time::timeout(PATIENCE, trying)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s; check the network", PATIENCE.as_secs())))
}

/// Whether a broker takes this device; the running agent is not disturbed by a session of another name.
async fn session(config: &Config, broker: &HostPort) -> Result<(), String> {
    let tls = Identity::load(&config.identity()).and_then(|identity| identity.client_config());
    let proxies = config.proxies().map_err(|error| error.to_string())?;
    let (session, mut events, driver) = Session::new(Settings {
        brokers: vec![broker.clone()],
        tls: Arc::new(tls.map_err(|error| error.to_string())?),
        cn: config.device.to_string(),
        keep_alive: PATIENCE,
        inflight: 1,
        queue: 2,
        subscriptions: vec![],
        will: None,
        reconnect: (PATIENCE, PATIENCE),
        dial: Dial {
            proxies,
            ..Dial::default()
        },
    });
    let driver = tokio::spawn(driver);
    let outcome = match events.recv().await {
        Some(Event::Down(down)) => Err(down.to_string()),
        _ => Ok(()),
    };
    session.goodbye();
    tokio::task::yield_now().await;
    driver.abort();
    outcome
}

/// Whether something answers at a target.
async fn service(config: &Config, target: &Target) -> Result<(), String> {
    let (host, port) = match target {
        Target::Local(port) => {
            let host = config.targets.localhost.map(|address| address.to_string());
            (host.unwrap_or_else(|| "localhost".to_owned()), port.get())
        }
        Target::Host(address) => (address.host(), address.port()),
        // The configuration names none by another name.
        Target::Named(_) => return Ok(()),
    };
    let connected = TcpStream::connect((host.as_str(), port)).await;
    connected
        .map(drop)
        .map_err(|error| format!("{error}; see whether the service runs"))
}
