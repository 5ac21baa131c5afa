//! `rssh share` and `rssh web`: a name that whoever bears it may use.

use std::ffi::OsString;
use std::io::{IsTerminal as _, stderr};
use std::process::{Command, Stdio};

use rssh_proto::duration::Span;
use rssh_proto::payload::{OpenRequest, Operation, SharedName};
use rssh_proto::{DeviceId, Target, TunnelId};
use serde::Serialize;

use crate::args::{Common, ShareArgs, WebArgs, seconds};
use crate::cmd::{identify, open};
use crate::control::Control;
use crate::error::Error;
use crate::output::{self, rfc3339};
use crate::request::Answer;
use crate::signals::Signals;

/// Nobody closes a shared tunnel: it ends once unused for this long.
const IDLE: Span = Span::seconds(15 * 60);

/// What `--json` prints.
#[derive(Serialize)]
struct Share<'a> {
    url: String,
    host: &'a str,
    port: u16,
    device: &'a DeviceId,
    target: &'a Target,
    tunnel: TunnelId,
    host_expires_at: Option<String>,
}

/// Runs `rssh share`.
///
/// # Errors
/// The named failure.
pub async fn share(common: &Common, args: &ShareArgs) -> Result<(), Error> {
    let shared = name(common, &args.device, &args.target, args.r#for, args.timeout, args.json).await?;
    if args.json {
        return output::json(&Share {
            url: url(&shared),
            host: &shared.host,
            port: shared.port,
            device: &shared.device,
            target: &shared.target,
            tunnel: shared.tunnel,
            host_expires_at: rfc3339(shared.expires_at),
        });
    }
    if !common.quiet {
        warn(&shared);
    }
    output::data(&format!("{}\n", url(&shared)))
}

/// Runs `rssh web`.
///
/// # Errors
/// The named failure.
pub async fn web(common: &Common, args: &WebArgs) -> Result<(), Error> {
    let shared = name(common, &args.device, &args.target, args.r#for, args.timeout, false).await?;
    let url = url(&shared);
    if !common.quiet {
        warn(&shared);
    }
    let browser = (!args.print && stderr().is_terminal()).then(browser).flatten();
    match browser.map(|browser| show(&browser, &url)) {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => {
            output::remark(&format!("cannot start a browser: {error}; open this yourself"));
            output::data(&format!("{url}\n"))
        }
        None => output::data(&format!("{url}\n")),
    }
}

/// Opens a tunnel and has a bearer name signed for it.
async fn name(
    common: &Common,
    device: &DeviceId,
    target: &Target,
    valid: Span,
    timeout: Span,
    silent: bool,
) -> Result<SharedName, Error> {
    let valid_s = seconds(valid);
    if valid_s > SharedName::LONGEST_S {
        return Err(Error::usage(format!(
            "a shared name lives for {} at most; share again when it is over",
            Span::seconds(u64::from(SharedName::LONGEST_S))
        )));
    }
    let (profile, tls) = identify(common).await?;
    let mut signals = Signals::watch()?;
    let mut control = Control::start(&profile, tls.clone());
    let wanted = OpenRequest {
        idle_s: Some(seconds(IDLE)),
        hold: false,
        ..OpenRequest::new(device.clone(), target.clone())
    };
    let silent = common.quiet || silent;
    let opened = open::proven(&profile, tls, &mut control, &mut signals, wanted, timeout, silent).await;
    let shared = match opened {
        Ok(opened) => {
            let tunnel = opened.info.tunnel;
            let mut ask = control.ask(Operation::Share { tunnel, valid_s }, timeout);
            signals
                .or(async { Ok(control.carry(&mut ask, |_, _| {}).await?) })
                .await
        }
        Err(error) => Err(error),
    };
    control.leave().await;
    match shared? {
        Answer::Shared(shared) => Ok(shared),
        _ => Err(Error::internal("the answer to a share was none")),
    }
}

fn url(shared: &SharedName) -> String {
    match shared.port {
        443 => format!("https://{}/", shared.host),
        port => format!("https://{}:{port}/", shared.host),
    }
}

fn warn(shared: &SharedName) {
    let SharedName {
        device,
        target,
        valid_s,
        ..
    } = shared;
    output::remark(&format!(
        "whoever has this URL within {} reaches {target} of {device}, from the first address that uses it; networks on \
         the way can read the name",
        Span::seconds(u64::from(*valid_s))
    ));
}

/// The program that shows a page.
fn browser() -> Option<OsString> {
    let named = std::env::var_os("BROWSER").filter(|browser| !browser.is_empty());
    let display = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|variable| std::env::var_os(variable).is_some());
    named.or_else(|| {
        if cfg!(target_os = "macos") {
            Some("open".into())
        } else {
            display.then(|| "xdg-open".into())
        }
    })
}

fn show(browser: &OsString, url: &str) -> std::io::Result<()> {
    let status = Command::new(browser)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(std::io::Error::other(status.to_string()))
    }
}
