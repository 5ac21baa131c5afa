//! `rssh watch`: the user's tunnels as they come, change and go.

use std::io::{IsTerminal as _, stdout};

use dialoguer::console::Term;
use rssh_proto::Failure;
use rssh_proto::duration::Span;
use rssh_proto::payload::TunnelInfo;

use crate::args::{Common, WatchArgs};
use crate::cmd::{identify, ls};
use crate::control::Control;
use crate::error::Error;
use crate::known::Known;
use crate::output::{self, EventObject};
use crate::signals::Signals;
use crate::watch::{Event, Watch};

/// How long one list may take.
const PATIENCE: Span = Span::seconds(10);

/// Runs the command, until a signal.
///
/// # Errors
/// The named failure of the first list; later ones are told, and tried again.
pub async fn run(common: &Common, args: &WatchArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common)?;
    let mut signals = Signals::watch()?;
    let mut control = Control::start(&profile, tls);
    let known = Known::of(&profile);
    let mut screen = (!args.json && stdout().is_terminal()).then(Screen::new);
    let mut watch = Watch::new(args.every.duration());
    let watching = async {
        let mut ever = false;
        let mut told = false;
        loop {
            match ls::list(&mut control, PATIENCE).await {
                Ok(tunnels) => {
                    known.listed(&tunnels);
                    let events = watch.handle_list(&tunnels);
                    match &mut screen {
                        Some(screen) => screen.draw(&tunnels, None)?,
                        None => events
                            .iter()
                            .try_for_each(|(event, info)| tell(*event, info, args.json))?,
                    }
                    (ever, told) = (true, false);
                }
                Err(failure) if !ever => return Err(failure.into()),
                Err(failure) => {
                    watch.handle_failure();
                    match &mut screen {
                        Some(screen) => screen.draw(&[], Some(&failure))?,
                        None if !told && !common.quiet => output::remark(failure.message()),
                        None => {}
                    }
                    told = true;
                }
            }
            tokio::time::sleep(watch.pause()).await;
        }
    };
    let ended: Result<(), Error> = signals.or(watching).await;
    control.leave().await;
    ended.map_err(|error| match error {
        Error::Signal(_) => Error::Silent(error.exit_code()),
        other => other,
    })
}

fn tell(event: Event, info: &TunnelInfo, json: bool) -> Result<(), Error> {
    if json {
        return output::json(&EventObject::new(event, info));
    }
    let event = match event {
        Event::Added => "added",
        Event::Changed => "changed",
        Event::Removed => "removed",
    };
    let TunnelInfo {
        device, target, tunnel, ..
    } = info;
    let state = output::state(info.state);
    output::data(&format!("{event} {device} {target} {state} {tunnel}\n"))
}

/// The table on the terminal, drawn over the one before.
struct Screen {
    terminal: Term,
    lines: usize,
    table: String,
}

impl Screen {
    fn new() -> Self {
        Self {
            terminal: Term::stdout(),
            lines: 0,
            table: String::new(),
        }
    }

    /// Draws the tunnels; while a failure lasts, the last ones with its reason.
    fn draw(&mut self, tunnels: &[TunnelInfo], failure: Option<&Failure>) -> Result<(), Error> {
        let (height, width) = self.terminal.size();
        let text = match failure {
            Some(failure) => format!("{}{}\n", self.table, failure.message()),
            None => {
                let now = jiff::Timestamp::now().as_second();
                self.table = match tunnels {
                    [] => "no open tunnels\n".to_owned(),
                    _ => output::table(tunnels, now, Some(usize::from(width))),
                };
                self.table.clone()
            }
        };
        // What has scrolled off cannot be drawn over.
        let text: Vec<&str> = text.lines().take(usize::from(height).saturating_sub(1)).collect();
        let drawn = self
            .terminal
            .clear_last_lines(self.lines)
            .and_then(|()| text.iter().try_for_each(|line| self.terminal.write_line(line)));
        self.lines = text.len();
        drawn.map_err(|error| Error::internal(format!("cannot write to the terminal: {error}")))
    }
}
