//! `rssh-agentd status`, `pause` and `resume`: asks the running agent and tells what it says.

use std::fmt::Write as _;
use std::time::Duration;

use rssh_proto::duration::Span;

use crate::config::Config;
use crate::control::{self, ControlError, Order, Status, TunnelState};

/// Asks the agent that runs with a configuration; prints its status. Whether it is connected to a broker.
///
/// # Errors
/// When it does not run, or does not answer.
pub async fn ask(config: &Config, order: Order, json: bool) -> Result<bool, ControlError> {
    let status = control::ask(&config.state_dir, &config.device, order).await?;
    if json {
        let text = serde_json::to_string(&status).map_err(|error| ControlError::Silent(error.into()))?;
        println!("{text}");
    } else {
        print!("{}", text(&status));
    }
    Ok(status.connected)
}

/// A status for people.
fn text(status: &Status) -> String {
    let span = |seconds| Span::seconds(seconds);
    let mut text = format!(
        "{}: {} for {}\n",
        status.device,
        if status.connected {
            "connected to the broker"
        } else {
            "not connected to a broker"
        },
        span(status.since_s)
    );
    // Writing to a String cannot fail.
    if let Some(left) = status.paused_s {
        let _ = writeln!(text, "paused: no tunnel is opened for another {}", span(left));
    }
    if status.tunnels.is_empty() {
        text.push_str("no tunnels\n");
    }
    for tunnel in &status.tunnels {
        let state = match tunnel.state {
            TunnelState::Waiting => "waits for its next try",
            TunnelState::Landing => "is being opened",
            TunnelState::Up => "is up",
            TunnelState::Ending => "is ending",
        };
        let _ = writeln!(
            text,
            "tunnel {} to {} {state}, until {} from now at most",
            tunnel.tunnel,
            tunnel.target,
            span(tunnel.deadline_s)
        );
    }
    match &status.last_failure {
        Some(trouble) => {
            let _ = writeln!(text, "last failure, {} ago: {}", span(trouble.ago_s), trouble.message);
        }
        None => text.push_str("nothing has failed since it started\n"),
    }
    text
}

/// How long a pause may last.
pub fn pause(text: &str) -> Result<Span, String> {
    const LONGEST: Duration = Duration::from_secs(30 * 86_400);
    let span: Span = text.parse().map_err(|error| format!("{error}"))?;
    if span.duration() < Duration::from_secs(1) || span.duration() > LONGEST {
        return Err("a pause lasts from 1s to 30d".to_owned());
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Trouble;

    #[test]
    fn a_status_says_what_failed_last() {
        let status = Status {
            device: "device-1".parse().unwrap(),
            version: "0.1.0".into(),
            connected: false,
            since_s: 90,
            paused_s: Some(60),
            tunnels: vec![],
            last_failure: Some(Trouble {
                message: "cannot reach the broker mqtt.test:8883: no route to host".into(),
                ago_s: 3,
            }),
        };
        assert_eq!(
            text(&status),
            "device-1: not connected to a broker for 90s\n\
             paused: no tunnel is opened for another 1m\n\
             no tunnels\n\
             last failure, 3s ago: cannot reach the broker mqtt.test:8883: no route to host\n"
        );
    }

    #[test]
    fn a_pause_has_an_end() {
        assert!(pause("2h").is_ok());
        for bad in ["0s", "31d", "forever"] {
            assert!(pause(bad).is_err(), "{bad}");
        }
    }
}
