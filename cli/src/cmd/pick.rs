//! `rssh` alone: offers the user's devices, and logs in to the one that is chosen.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stderr, stdin};

use dialoguer::FuzzySelect;
use rssh_proto::duration::Span;
use rssh_proto::payload::{Operation, Presence};
use rssh_proto::{DeviceId, FailureKind};

use crate::args::{Common, Destination, SshArgs};
use crate::cmd::{identify, ssh};
use crate::control::Control;
use crate::error::Error;
use crate::known::Known;
use crate::request::Answer;

/// How long a server may take to list the devices; those seen here before are offered without it.
const PATIENCE: Span = Span::seconds(3);

/// Runs the command.
///
/// # Errors
/// Without a terminal or a device to offer, or as `rssh ssh`.
pub fn run(common: &Common) -> Result<(), Error> {
    if !(stdin().is_terminal() && stderr().is_terminal()) {
        return Err(Error::usage(
            "no command, and no terminal to choose a device on; see rssh --help",
        ));
    }
    let mut offered: BTreeMap<DeviceId, &str> = BTreeMap::new();
    crate::block_on(async {
        offered = devices(common).await?;
        Ok(())
    })?;
    let devices: Vec<&DeviceId> = offered.keys().collect();
    if devices.is_empty() {
        return Err(Error::new(
            FailureKind::UnknownDevice,
            "there is no device to offer; ask your administrator for one, or name one: rssh ssh DEVICE",
        ));
    }
    let items: Vec<String> = offered
        .iter()
        .map(|(device, presence)| format!("{device}  {presence}").trim_end().to_owned())
        .collect();
    let chosen = FuzzySelect::new()
        .with_prompt("Log in to")
        .items(&items)
        .default(0)
        .interact_opt()
        .map_err(|error| Error::usage(format!("no device was chosen ({error}); name one: rssh ssh DEVICE")))?;
    let Some(device) = chosen.and_then(|index| devices.get(index)) else {
        return Err(Error::Silent(130));
    };
    let destination = Destination {
        login: None,
        device: (*device).clone(),
    };
    let args = vec![];
    crate::block_on(ssh::run(common, &SshArgs { destination, args }))
}

/// The devices that a server lists, and those that were seen here before.
async fn devices(common: &Common) -> Result<BTreeMap<DeviceId, &'static str>, Error> {
    let (profile, tls) = identify(common).await?;
    let known = Known::of(&profile).devices();
    let mut devices: BTreeMap<_, _> = known.into_iter().map(|device| (device, "")).collect();
    let mut control = Control::start(&profile, tls);
    let mut ask = control.ask(Operation::Devices, PATIENCE);
    let answer = control.carry(&mut ask, |_, _| {}).await;
    control.leave().await;
    match answer {
        Ok(Answer::Devices(listed)) => {
            // A server knows better which there are.
            devices = listed
                .into_iter()
                .map(|info| match info.presence {
                    Presence::Online => (info.device, "online"),
                    Presence::Offline => (info.device, "offline"),
                })
                .collect();
        }
        Ok(_) => {}
        Err(failure) if devices.is_empty() => return Err(failure.into()),
        Err(failure) => tracing::debug!(%failure, "devices not listed"),
    }
    Ok(devices)
}
