//! How far an open has come, for a person who watches: a spinner on stderr, and only on a terminal.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rssh_proto::payload::Rank;
use rssh_proto::{DeviceId, ServerId};

use crate::output;

/// The spinner, or nothing where nobody watches.
pub struct Progress {
    bar: Option<ProgressBar>,
    device: DeviceId,
}

impl Progress {
    /// Starts to show how a device's tunnel comes up, unless `silent` or stderr is no terminal.
    pub fn of(device: &DeviceId, silent: bool) -> Self {
        let shown = !silent && stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.set_message(format!("{device}: asking for a tunnel"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            device: device.clone(),
        }
    }

    /// A server tells how far the request is.
    pub fn stage(&self, rank: Rank, server: &ServerId) {
        let device = &self.device;
        self.say(|| match rank {
            Rank::Accepted => format!("{device}: accepted by {server}"),
            Rank::Answered => format!("{device}: device answered"),
            Rank::Claimed | Rank::Final => format!("{device}: connected to {server}"),
        });
    }

    /// The tunnel is up and is tried.
    pub fn proving(&self) {
        let device = &self.device;
        self.say(|| format!("{device}: connected, waiting for its answer"));
    }

    fn say(&self, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(message());
        }
    }

    /// Clears the line; with a last word, that stays.
    pub fn end(self, proven: bool) {
        if let Some(bar) = self.bar {
            let took = bar.elapsed().as_millis();
            bar.finish_and_clear();
            if proven {
                output::remark(&format!("{}: proven, {took} ms", self.device));
            }
        }
    }
}
