//! `rssh-agentd status`, `pause` and `resume`: asks the running agent and tells what it says.

use std::fmt::Write as _;
use std::time::Duration;

use rssh_proto::duration::Span;

use crate::config::Config;
use crate::control::{self, ControlError, Order, Status, TunnelState};

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
    /// For Prometheus, by way of its node exporter's textfile collector.
    #[cfg(feature = "metrics")]
    Metrics,
}

/// Asks the agent that runs with a configuration; prints its status. Whether it is connected to a broker.
///
/// # Errors
/// When it does not run, or does not answer.
pub async fn ask(config: &Config, order: Order, format: Format) -> Result<bool, ControlError> {
    let status = control::ask(&config.state_dir, &config.device, order).await?;
    match format {
        Format::Text => print!("{}", text(&status)),
        Format::Json => {
            let text = serde_json::to_string(&status).map_err(|error| ControlError::Silent(error.into()))?;
            println!("{text}");
        }
        #[cfg(feature = "metrics")]
        Format::Metrics => print!("{}", metrics(&status)),
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

/// A status for Prometheus, in its text format. No label names the device or a tunnel: whoever reads it adds the instance.
#[cfg(feature = "metrics")]
fn metrics(status: &Status) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, values: &[(&str, u64)]| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP rssh_agent_{name} {help}\n# TYPE rssh_agent_{name} gauge");
        for (labels, value) in values {
            let _ = writeln!(text, "rssh_agent_{name}{labels} {value}");
        }
    };
    gauge(
        "broker_connected",
        "Whether the broker is connected",
        &[("", status.connected.into())],
    );
    gauge(
        "broker_since_seconds",
        "For how long that has been so",
        &[("", status.since_s)],
    );
    gauge(
        "paused_seconds",
        "How much longer no tunnel is opened",
        &[("", status.paused_s.unwrap_or(0))],
    );
    let count = |state| status.tunnels.iter().filter(|tunnel| tunnel.state == state).count() as u64;
    gauge(
        "tunnels",
        "Tunnels of this device, by state",
        &[
            ("{state=\"waiting\"}", count(TunnelState::Waiting)),
            ("{state=\"landing\"}", count(TunnelState::Landing)),
            ("{state=\"up\"}", count(TunnelState::Up)),
            ("{state=\"ending\"}", count(TunnelState::Ending)),
        ],
    );
    if let Some(trouble) = &status.last_failure {
        gauge(
            "last_failure_seconds",
            "How long ago something last failed",
            &[("", trouble.ago_s)],
        );
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
    #[cfg(feature = "metrics")]
    use crate::control::TunnelStatus;

    fn in_trouble() -> Status {
        Status {
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
        }
    }

    #[test]
    fn a_status_says_what_failed_last() {
        assert_eq!(
            text(&in_trouble()),
            "device-1: not connected to a broker for 90s\n\
             paused: no tunnel is opened for another 1m\n\
             no tunnels\n\
             last failure, 3s ago: cannot reach the broker mqtt.test:8883: no route to host\n"
        );
    }

    #[cfg(feature = "metrics")]
    #[test]
    fn a_status_for_prometheus_has_a_line_for_each_figure_and_names_nothing() {
        let mut status = in_trouble();
        status.tunnels.push(TunnelStatus {
            tunnel: "0199aa00-0000-7000-8000-000000000000".parse().unwrap(),
            target: "localhost:22".parse().unwrap(),
            state: TunnelState::Up,
            deadline_s: 60,
        });
        let text = metrics(&status);
        let figures: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            figures,
            [
                "rssh_agent_broker_connected 0",
                "rssh_agent_broker_since_seconds 90",
                "rssh_agent_paused_seconds 60",
                "rssh_agent_tunnels{state=\"waiting\"} 0",
                "rssh_agent_tunnels{state=\"landing\"} 0",
                "rssh_agent_tunnels{state=\"up\"} 1",
                "rssh_agent_tunnels{state=\"ending\"} 0",
                "rssh_agent_last_failure_seconds 3",
            ]
        );
        assert!(!text.contains("device-1"), "{text}");
    }

    #[test]
    fn a_pause_has_an_end() {
        assert!(pause("2h").is_ok());
        for bad in ["0s", "31d", "forever"] {
            assert!(pause(bad).is_err(), "{bad}");
        }
    }
}
