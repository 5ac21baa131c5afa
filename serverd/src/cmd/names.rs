//! The masters of the name keys, changed by the administrator.

use anyhow::Result;
use rssh_proto::audit::Event;

use super::{audit, office};
use crate::args::Names;
use crate::clock;

pub(super) async fn run(command: Names) -> Result<()> {
    match command {
        Names::Rotate { at, overlap } => {
            let office = office(&at)?;
            let name_ttl = office.config.tunnels.name_ttl.duration();
            office
                .pki
                .masters()
                .rotate(overlap.duration(), name_ttl, clock::now())?;
            let event = Event::now("names-rotated").with("overlap_s", overlap.duration().as_secs());
            audit::record(&office.store, event).await?;
            println!("rotated; names by the keys before are good for {overlap} more");
        }
        Names::Retire(at) => {
            let office = office(&at)?;
            let ended = office.pki.masters().retire(clock::now())?;
            if !ended {
                anyhow::bail!("there is no master before to take back; rssh-serverd names rotate draws another");
            }
            audit::record(&office.store, Event::now("names-retired")).await?;
            println!("retired; names by the keys before are refused from now on");
        }
    }
    Ok(())
}
