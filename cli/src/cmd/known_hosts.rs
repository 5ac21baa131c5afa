//! `rssh known-hosts`: devices' host keys, as ssh takes them.

use rssh_proto::payload::Operation;
use rssh_proto::{DeviceId, FailureKind};
use serde::Serialize;

use crate::args::{Common, HOSTS, KnownHostsArgs};
use crate::cmd::identify;
use crate::control::Control;
use crate::error::Error;
use crate::host_keys::HostKeys;
use crate::output;
use crate::request::Answer;

/// A device's keys, as `--json` prints them.
#[derive(Serialize)]
struct Keys<'a> {
    device: &'a DeviceId,
    keys: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// The named failure; for ssh's own call there is none, since it would tell the user of it at every login.
pub async fn run(common: &Common, args: &KnownHostsArgs) -> Result<(), Error> {
    let mut control = None;
    let (profile, tls) = identify(common).await?;
    let cache = HostKeys::of(&profile);
    let mut told = Ok(());
    for device in &args.devices {
        let known = if args.cached { cache.get(device) } else { None };
        let keys = match known {
            Some(keys) => keys,
            None => {
                let control = control.get_or_insert_with(|| Control::start(&profile, tls.clone()));
                let op = Operation::HostKeys { device: device.clone() };
                let mut ask = control.ask(op, args.timeout);
                match control.carry(&mut ask, |_, _| {}).await {
                    Ok(Answer::HostKeys(keys)) => {
                        let keys: Vec<String> = keys.into_iter().filter(|key| is_key(key)).collect();
                        cache.put(device, &keys);
                        keys
                    }
                    Ok(_) => return Err(Error::internal("the answer to a question for keys was none")),
                    Err(failure) => {
                        told = Err(failure.into());
                        continue;
                    }
                }
            }
        };
        if keys.is_empty() {
            told = Err(Error::new(
                FailureKind::UnknownDevice,
                format!("{device} has not reported its host keys; its agent does so when it enrols"),
            ));
        } else if args.json {
            output::json(&Keys { device, keys })?;
        } else {
            for key in &keys {
                output::data(&format!("{device},{device}{HOSTS} {key}\n"))?;
            }
        }
    }
    if let Some(control) = control {
        control.leave().await;
    }
    // ssh goes on with the keys that it has from elsewhere.
    if args.cached { Ok(()) } else { told }
}

/// Whether a text is `<type> <base64>`: one line that no other can hide in.
fn is_key(text: &str) -> bool {
    let plain = |word: &str, more: &[u8]| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    match text.split_once(' ') {
        Some((kind, key)) => plain(kind, b"-@.") && plain(key, b"+/="),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_type_and_base64_and_nothing_else() {
        assert!(is_key("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF3b4OqFP4Oq"));
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 ",
            "ssh-ed25519 AAAA x",
            "ssh-ed25519 AA\nAA",
            "* AAAA",
            " AAAA",
        ] {
            assert!(!is_key(bad), "{bad:?}");
        }
    }
}
