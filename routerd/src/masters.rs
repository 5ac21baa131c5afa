//! The masters of the name keys, followed while they change.
//!
//! What is answered goes into the files, and those are read every second: so a restart finds what counted last.

use anyhow::Context as _;
use rssh_mqtt::https::Client;
use rssh_mqtt::{Identity, files};
use rssh_proto::enrolment::NameMastersNow;
use rssh_proto::{HttpsUrl, NameMaster};
use tokio::time::{Duration, MissedTickBehavior, interval};

use crate::config::Config;

/// How often they are asked for: several times before any server signs by another one.
const ASK: Duration = Duration::from_secs(5);

/// Takes other masters as soon as there are any, for ever; without a URL there is nobody to ask.
pub async fn follow(config: Config) {
    let Some(url) = config.url.clone() else { return };
    let mut ticks = interval(ASK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        ticks.tick().await;
        match take(&config, &url).await {
            Ok(()) => failed = false,
            // Told once: the door may be away for long, and the masters are good all the while.
            Err(error) if !failed => {
                failed = true;
                tracing::warn!("the masters of the name keys before stay: {error:#}");
            }
            Err(_) => {}
        }
    }
}

async fn take(config: &Config, url: &HttpsUrl) -> anyhow::Result<()> {
    let identity = Identity::load(&config.mqtt.identity())?;
    let answer: NameMastersNow = Client::new(url.clone(), &identity)?
        .post("/v1/router/name-masters", &serde_json::json!({}))
        .await?;
    let master = |text: &str| {
        text.parse::<NameMaster>()
            .context("what came is no master of name keys")
    };
    let current = master(&answer.current)?;
    let previous = answer.previous.as_deref().map(master).transpose()?;
    keep(config, &current, previous.as_ref())
}

/// Puts the masters where they are read, where they are others.
fn keep(config: &Config, current: &NameMaster, previous: Option<&NameMaster>) -> anyhow::Result<()> {
    let held = config.masters()?;
    let before = config.name_master_previous();
    let write = |path, master: &NameMaster| {
        let text = format!("{}\n", master.to_base64());
        files::write_secret(path, text.as_bytes())
    };
    // First the one before: at no moment is one missing that names are signed by.
    if let Some(previous) = previous.filter(|previous| held.1.as_ref() != Some(previous)) {
        write(&before, previous)?;
    }
    if held.0 != *current {
        write(&config.name_master, current)?;
        tracing::info!("the name keys have another master");
    }
    if previous.is_none() && held.1.is_some() {
        std::fs::remove_file(&before).with_context(|| format!("cannot remove {}", before.display()))?;
        tracing::info!("names by the master before are refused from now on");
    }
    Ok(())
}
