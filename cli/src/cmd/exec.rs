//! `rssh exec`: one command on several devices.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rssh_proto::{DeviceId, Failure, FailureKind, Target};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::args::{Common, Destination, ExecArgs};
use crate::certificate;
use crate::cmd::{devices, identify};
use crate::control::Control;
use crate::error::Error;
use crate::output;
use crate::profile::Profile;
use crate::remote::{self, Stream};
use crate::session::{Client, Wanted};
use crate::signals::Signals;
use crate::ssh::Proxy;

/// How much of each output goes into a JSON object; the rest is dropped, and said so.
const KEPT: usize = 1024 * 1024;

/// How it went on one device, as `--json` prints it.
#[derive(Serialize)]
struct Outcome<'a> {
    device: &'a DeviceId,
    /// `exited` or `failed`.
    outcome: &'static str,
    exit_code: u8,
    failure: Option<&'a Failure>,
    stdout: String,
    stderr: String,
    truncated: bool,
    millis: u128,
}

/// Runs the command.
///
/// # Errors
/// Ends with the worst exit code; what failed has been told by then.
pub async fn run(common: &Common, args: &ExecArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common).await?;
    let mut destinations: Vec<Destination> = Vec::new();
    for destination in args
        .destinations
        .iter()
        .cloned()
        .chain(tagged(&profile, &tls, args).await?)
    {
        if !destinations.contains(&destination) {
            destinations.push(destination);
        }
    }
    let job = Arc::new(Job {
        client: Client::of(profile.clone(), tls),
        profile,
        proxy: Proxy::of(common)?.quiet(true),
        slots: Semaphore::new(usize::from(args.parallel.get())),
        command: args.command.clone(),
        timeout: args.timeout,
        json: args.json,
        bar: bar(destinations.len(), common.quiet || args.json),
    });
    let mut running = JoinSet::new();
    for destination in destinations {
        let job = job.clone();
        running.spawn(async move { job.on(&destination).await });
    }
    let mut codes = Vec::new();
    while let Some(ended) = running.join_next().await {
        let (device, ended) = ended.map_err(|error| Error::internal(error.to_string()))?;
        job.bar.inc(1);
        let told = match &ended {
            Ok(0) => None,
            Ok(code) => Some(format!("{device}: exit code {code}")),
            Err(Error::Signal(_)) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(told) = told.filter(|_| !args.json) {
            job.bar.suspend(|| output::remark(&told));
        }
        codes.push(ended);
    }
    job.bar.finish_and_clear();
    conclude(&codes, common.quiet || args.json)
}

/// The devices that have the tags.
async fn tagged(
    profile: &Profile,
    tls: &Arc<rustls::ClientConfig>,
    args: &ExecArgs,
) -> Result<Vec<Destination>, Error> {
    if args.selector.tags.is_empty() {
        return Ok(Vec::new());
    }
    let mut control = Control::start(profile, tls.clone());
    let devices = devices::list(&mut control, args.timeout).await;
    control.leave().await;
    let devices = devices::selected(devices?, &args.selector);
    if devices.is_empty() {
        let tags: Vec<String> = args.selector.tags.iter().map(ToString::to_string).collect();
        return Err(Error::new(
            FailureKind::UnknownDevice,
            format!("no device has the tags {}; rssh devices shows them", tags.join(" ")),
        ));
    }
    let chosen = devices.into_iter().map(|info| Destination {
        login: args.login.clone(),
        device: info.device,
    });
    Ok(chosen.collect())
}

/// Sums up; the worst exit code is the command's, and a signal counts before all.
fn conclude(ended: &[Result<u8, Error>], silent: bool) -> Result<(), Error> {
    if let Some(Err(signal)) = ended.iter().find(|ended| matches!(ended, Err(Error::Signal(_)))) {
        return Err(signal.clone());
    }
    let count = |which: fn(&&Result<u8, Error>) -> bool| ended.iter().filter(which).count();
    let succeeded = count(|ended| matches!(ended, Ok(0)));
    let failed = count(|ended| ended.is_err());
    let others = ended.len() - succeeded - failed;
    if !silent && ended.len() > 1 {
        output::remark(&format!(
            "{} devices: {succeeded} succeeded, {others} ended with another exit code, {failed} failed",
            ended.len()
        ));
    }
    let worst = ended.iter().map(|ended| match ended {
        Ok(code) => *code,
        Err(error) => error.exit_code(),
    });
    match worst.max() {
        None | Some(0) => Ok(()),
        Some(code) => Err(Error::Silent(code)),
    }
}

fn bar(devices: usize, silent: bool) -> ProgressBar {
    if silent || devices < 2 || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(u64::try_from(devices).unwrap_or(u64::MAX));
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos} of {len} devices, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// What all devices have in common.
struct Job {
    client: Client,
    profile: Profile,
    proxy: Proxy,
    slots: Semaphore,
    command: Vec<std::ffi::OsString>,
    timeout: rssh_proto::duration::Span,
    json: bool,
    bar: ProgressBar,
}

impl Job {
    async fn on(&self, destination: &Destination) -> (DeviceId, Result<u8, Error>) {
        let device = &destination.device;
        let kept = Kept::default();
        let (mut ended, took) = match Signals::watch() {
            Ok(mut signals) => self.run(destination, &mut signals, &kept).await,
            Err(error) => (Err(error), Duration::ZERO),
        };
        if self.json
            && let Some(object) = kept.outcome(device, &ended, took)
            && let Err(error) = output::json(&object)
        {
            ended = Err(error);
        }
        (device.clone(), ended)
    }

    async fn run(
        &self,
        destination: &Destination,
        signals: &mut Signals,
        kept: &Kept,
    ) -> (Result<u8, Error>, Duration) {
        let slot = signals.or(async {
            self.slots
                .acquire()
                .await
                .map_err(|error| Error::internal(error.to_string()))
        });
        let _slot = match slot.await {
            Ok(slot) => slot,
            Err(error) => return (Err(error), Duration::ZERO),
        };
        let start = Instant::now();
        let wanted = Wanted {
            device: destination.device.clone(),
            target: Target::ssh(),
            timeout: self.timeout,
            silent: true,
        };
        // The tunnel comes first: a failure has its name here, and is only "255" from ssh.
        if let Err(error) = self.client.reach(&wanted, signals).await {
            return (Err(error), start.elapsed());
        }
        let line = |stream, line: &[u8]| self.pass_on(&destination.device, stream, line, kept);
        let mut login = certificate::arguments(&self.profile, &destination.device).await;
        login.extend(self.proxy.login(destination));
        let ran = remote::run(&destination.device, &login, &self.command, &line);
        (signals.or(ran).await, start.elapsed())
    }

    fn pass_on(&self, device: &DeviceId, stream: Stream, line: &[u8], kept: &Kept) {
        if self.json {
            return kept.keep(stream, line);
        }
        let line = [device.as_str().as_bytes(), b": ", line].concat();
        self.bar.suspend(|| match stream {
            // Nobody reads it any more: the devices go on, and so do the exit codes.
            Stream::Stdout => drop(output::bytes(&line)),
            Stream::Stderr => drop(stderr().write_all(&line)),
        });
    }
}

/// The output that goes into a JSON object.
#[derive(Default)]
struct Kept(Mutex<Outputs>);

#[derive(Default)]
struct Outputs {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn keep(&self, stream: Stream, line: &[u8]) {
        let mut outputs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let output = match stream {
            Stream::Stdout => &mut outputs.stdout,
            Stream::Stderr => &mut outputs.stderr,
        };
        let room = KEPT - output.len();
        output.extend_from_slice(&line[..line.len().min(room)]);
        outputs.truncated |= line.len() > room;
    }

    fn outcome<'a>(self, device: &'a DeviceId, ended: &'a Result<u8, Error>, took: Duration) -> Option<Outcome<'a>> {
        let (exit_code, failure) = match ended {
            Ok(code) => (*code, None),
            Err(Error::Failure(failure)) => (failure.kind.exit_code(), Some(failure)),
            Err(_) => return None,
        };
        let outputs = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Outcome {
            device,
            outcome: if failure.is_some() { "failed" } else { "exited" },
            exit_code,
            failure,
            stdout: text(&outputs.stdout),
            stderr: text(&outputs.stderr),
            truncated: outputs.truncated,
            millis: took.as_millis(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_exit_code_is_the_commands() {
        let offline = Err(Error::new(FailureKind::Offline, "device-1 is offline"));
        for (ended, expected) in [
            (vec![Ok(0), Ok(0)], Ok(())),
            (vec![Ok(0), Ok(3), Ok(1)], Err(Error::Silent(3))),
            (vec![offline.clone(), Ok(3)], Err(Error::Silent(80))),
            (vec![offline, Err(Error::Signal(2))], Err(Error::Signal(2))),
        ] {
            assert_eq!(conclude(&ended, true), expected);
        }
    }
}
