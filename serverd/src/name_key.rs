//! The key that this server signs names with, while it changes.

use std::sync::Arc;

use anyhow::Result;
use rssh_mqtt::Identity;
use rssh_mqtt::https::Client;
use rssh_proto::NameKey;
use rssh_proto::enrolment::NameKeyNow;

use crate::clock;
use crate::home::Home;
use crate::masters::SERVERS_ASK;
use crate::office::Office;
use crate::server::Server;

/// Signs with another key as soon as there is one, for ever; while nobody says which, the one before stays.
pub async fn follow(server: Arc<Server>) {
    let office = Office::of(&server.config, &server.store);
    let mut ticks = tokio::time::interval(SERVERS_ASK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        ticks.tick().await;
        match take(&server, office.as_ref()).await {
            Ok(changed) => {
                failed = false;
                if changed {
                    tracing::info!("names are signed with another key from now on");
                }
            }
            // Told once: the door may be away for long, and the key is good all the while.
            Err(error) if !failed => {
                failed = true;
                tracing::warn!("the name key before stays: {error:#}");
            }
            Err(_) => {}
        }
    }
}

/// Returns whether the key is another now.
async fn take(server: &Server, office: Option<&Office>) -> Result<bool> {
    let Some(key) = ask(server, office).await? else {
        return Ok(false);
    };
    if *server.name_key() == key {
        return Ok(false);
    }
    // First what a restart finds.
    Home::open(&server.config)?.keep_name_key(&key)?;
    *server.name_key() = key;
    Ok(true)
}

/// The key that counts now; none where the configuration names nobody to ask.
async fn ask(server: &Server, office: Option<&Office>) -> Result<Option<NameKey>> {
    if let Some(office) = office {
        return Ok(Some(office.pki.masters().read(clock::now())?.key(&server.id)));
    }
    let Some(https) = &server.config.https else {
        return Ok(None);
    };
    let identity = Identity::load(&server.config.identity())?;
    let client = Client::new(https.url.clone(), &identity)?;
    let answer: NameKeyNow = client.post("/v1/server/name-key", &serde_json::json!({})).await?;
    Ok(Some(answer.name_key.parse()?))
}
