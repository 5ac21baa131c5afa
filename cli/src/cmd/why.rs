//! `rssh why`: how a tunnel came about, or why it did not.

use rssh_proto::payload::{Operation, TunnelState, TunnelTrace};
use rssh_proto::{DeviceId, Failure, FailureKind, ServerId, Target, TunnelId};
use serde::Serialize;

use crate::args::{Common, DeviceOrTunnel, WhyArgs};
use crate::cmd::identify;
use crate::control::Control;
use crate::error::Error;
use crate::output::{self, rfc3339};
use crate::request::Answer;
use crate::table;
use crate::trace::{Reached, Record, Records, Stage, advice, stages};

/// What `--json` prints.
#[derive(Serialize)]
struct Explained<'a> {
    /// None when the open came to nothing before it was a tunnel.
    tunnel: Option<TunnelId>,
    device: &'a DeviceId,
    target: &'a Target,
    state: TunnelState,
    server: Option<&'a ServerId>,
    requested_at: Option<String>,
    claims: u64,
    stages: Vec<Reached>,
    failure: Option<&'a Failure>,
    advice: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// The named failure: such as that there was no such tunnel.
pub async fn run(common: &Common, args: &WhyArgs) -> Result<(), Error> {
    let op = match (&args.which, args.target.given()) {
        (DeviceOrTunnel::Device(device), target) => Operation::Latest {
            device: device.clone(),
            target,
        },
        (DeviceOrTunnel::Tunnel(tunnel), None) => Operation::Trace { tunnel: *tunnel },
        (DeviceOrTunnel::Tunnel(_), Some(_)) => {
            return Err(Error::usage(
                "a tunnel has one target; leave --port and --to out, or name the device instead of the tunnel",
            ));
        }
    };
    let (profile, tls) = identify(common).await?;
    let mut control = Control::start(&profile, tls);
    let mut ask = control.ask(op, args.timeout);
    let answer = control.carry(&mut ask, |_, _| {}).await;
    control.leave().await;
    let records = Records::of(&profile);
    let trace = match answer {
        Ok(Answer::Trace(trace)) => *trace,
        Ok(_) => return Err(Error::internal("the answer to a question was none")),
        Err(failure) if failure.kind == FailureKind::UnknownTunnel => {
            return match refused(&records, args) {
                Some(record) => tell(&of_record(&record), args.json),
                None => Err(failure.into()),
            };
        }
        Err(failure) => return Err(failure.into()),
    };
    if let Some(later) = refused(&records, args)
        && later.at > trace.requested_at
        && later.request != trace.info.tunnel
    {
        return tell(&of_record(&later), args.json);
    }
    let seen = records.last(&trace.info.device);
    let ours = seen.as_ref().filter(|seen| {
        let made = [Some(seen.request), seen.tunnel];
        made.contains(&Some(trace.info.tunnel))
    });
    let explained = Explained {
        tunnel: Some(trace.info.tunnel),
        device: &trace.info.device,
        target: &trace.info.target,
        state: trace.info.state,
        server: trace.info.server.as_ref(),
        requested_at: rfc3339(trace.requested_at),
        claims: trace.claims,
        stages: stages(&trace, seen.as_ref()),
        failure: failure_of(&trace, ours),
        advice: advice(&trace),
    };
    tell(&explained, args.json)
}

/// What failed: by the servers' word, or on the way back.
fn failure_of<'a>(trace: &'a TunnelTrace, seen: Option<&'a Record>) -> Option<&'a Failure> {
    trace.failure.as_ref().or(seen.and_then(|seen| seen.failure.as_ref()))
}

/// The last open from here of what is asked about, where it came to nothing before it was a tunnel: no server has it in
/// its books.
fn refused(records: &Records, args: &WhyArgs) -> Option<Record> {
    let DeviceOrTunnel::Device(device) = &args.which else {
        return None;
    };
    let target = args.target.given();
    records.last(device).filter(|record| {
        record.failure.is_some() && record.tunnel.is_none() && target.is_none_or(|target| record.target == target)
    })
}

/// An open that only this side knows of.
fn of_record(record: &Record) -> Explained<'_> {
    let sent = record.sent_ms.map(|at_ms| Reached {
        stage: Stage::Request,
        at_ms,
    });
    Explained {
        tunnel: None,
        device: &record.device,
        target: &record.target,
        state: TunnelState::Failed,
        server: None,
        requested_at: rfc3339(record.at),
        claims: 0,
        stages: sent.into_iter().collect(),
        failure: record.failure.as_ref(),
        advice: None,
    }
}

fn tell(explained: &Explained<'_>, json: bool) -> Result<(), Error> {
    if json {
        return output::json(explained);
    }
    let Explained { device, target, .. } = explained;
    let state = table::state(explained.state);
    let mut text = match (explained.server, explained.tunnel) {
        (Some(server), Some(tunnel)) => format!("{device} {target}: {state} on {server}, tunnel {tunnel}\n"),
        (None, Some(tunnel)) => format!("{device} {target}: {state}, tunnel {tunnel}\n"),
        (_, None) => format!("{device} {target}: {state} before it became a tunnel\n"),
    };
    if !explained.stages.is_empty() {
        text.push('\n');
        text.push_str(&stage_table(&explained.stages));
    }
    if explained.claims > 1 {
        text.push_str(&format!(
            "\nIt was claimed {} times; ssh, claim and listener are of the last time.\n",
            explained.claims
        ));
    }
    if let Some(failure) = explained.failure {
        text.push_str(&format!("\nIt failed: {failure}\n"));
    }
    if let Some(advice) = &explained.advice {
        text.push_str(&format!("\n{advice}\n"));
    }
    output::data(&text)
}

fn stage_table(stages: &[Reached]) -> String {
    let mut before = None;
    let rows: Vec<_> = stages
        .iter()
        .map(|reached| {
            let (name, meaning) = reached.stage.told();
            let took = before.map_or_else(String::new, |before| match reached.at_ms.checked_sub(before) {
                Some(took) => format!("+{took} ms"),
                None => String::new(),
            });
            before = Some(reached.at_ms);
            [
                name.to_owned(),
                format!("{} ms", reached.at_ms),
                took,
                meaning.to_owned(),
            ]
        })
        .collect();
    table::aligned(["STAGE", "AT", "TOOK", "WHAT"], &rows, &[3], table::width())
}
