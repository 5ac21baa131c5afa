//! `rssh watch`: the user's tunnels as they come, change and go; and devices likewise.

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
use crate::output::{self, EventObject, TunnelObject};
use crate::signals::Signals;
use crate::table;
use crate::watch::{Event, Watch, Watched};

/// How long one list may take.
const PATIENCE: Span = Span::seconds(10);

/// Runs the command, until a signal.
///
/// # Errors
/// The named failure of the first list; later ones are told, and tried again.
pub async fn run(common: &Common, args: &WatchArgs) -> Result<(), Error> {
    follow(common, Tunnels, args.every, args.json).await
}

/// What is watched: how it is asked for and shown.
pub(super) trait Listing {
    type Item: Watched;

    /// Asks for all of it.
    async fn list(&self, control: &mut Control, patience: Span) -> Result<Vec<Self::Item>, Failure>;

    /// Remembers a list; returns what of it is to be shown.
    fn shown(&self, list: Vec<Self::Item>, known: &Known) -> Vec<Self::Item>;

    /// A table that fits.
    fn table(&self, list: &[Self::Item], width: usize) -> String;

    /// One of it in a line, after the event.
    fn line(&self, item: &Self::Item) -> String;

    /// Prints an event as JSON.
    fn json(&self, event: Event, item: &Self::Item) -> Result<(), Error>;
}

/// Shows something until a signal: on a terminal a table that stays, otherwise a line for each event.
///
/// # Errors
/// As [`run`].
pub(super) async fn follow<L: Listing>(common: &Common, what: L, every: Span, json: bool) -> Result<(), Error> {
    let (profile, tls) = identify(common).await?;
    let mut signals = Signals::watch()?;
    let mut control = Control::start(&profile, tls);
    let known = Known::of(&profile);
    let mut screen = (!json && stdout().is_terminal()).then(Screen::new);
    let mut watch = Watch::new(every.duration());
    let watching = async {
        let mut ever = false;
        let mut told = false;
        loop {
            match what.list(&mut control, PATIENCE).await {
                Ok(list) => {
                    let list = what.shown(list, &known);
                    let events = watch.handle_list(&list);
                    match &mut screen {
                        Some(screen) => screen.draw(|width| what.table(&list, width))?,
                        None => events
                            .iter()
                            .try_for_each(|(event, item)| tell(&what, *event, item, json))?,
                    }
                    (ever, told) = (true, false);
                }
                Err(failure) if !ever => return Err(failure.into()),
                Err(failure) => {
                    watch.handle_failure();
                    match &mut screen {
                        Some(screen) => screen.draw_below(failure.message())?,
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

fn tell<L: Listing>(what: &L, event: Event, item: &L::Item, json: bool) -> Result<(), Error> {
    if json {
        return what.json(event, item);
    }
    let event = match event {
        Event::Added => "added",
        Event::Changed => "changed",
        Event::Removed => "removed",
    };
    output::data(&format!("{event} {}\n", what.line(item)))
}

/// The tunnels, watched.
struct Tunnels;

impl Listing for Tunnels {
    type Item = TunnelInfo;

    async fn list(&self, control: &mut Control, patience: Span) -> Result<Vec<TunnelInfo>, Failure> {
        ls::list(control, patience).await
    }

    fn shown(&self, tunnels: Vec<TunnelInfo>, known: &Known) -> Vec<TunnelInfo> {
        known.listed(&tunnels);
        tunnels
    }

    fn table(&self, tunnels: &[TunnelInfo], width: usize) -> String {
        let now = jiff::Timestamp::now().as_second();
        match tunnels {
            [] => "no open tunnels\n".to_owned(),
            _ => table::tunnels(tunnels, now, Some(width)),
        }
    }

    fn line(&self, info: &TunnelInfo) -> String {
        let TunnelInfo {
            device, target, tunnel, ..
        } = info;
        format!("{device} {target} {} {tunnel}", table::state(info.state))
    }

    fn json(&self, event: Event, info: &TunnelInfo) -> Result<(), Error> {
        output::json(&EventObject::new(event, TunnelObject::new(info, None)))
    }
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

    /// Draws a table for the terminal's width.
    fn draw(&mut self, table: impl FnOnce(usize) -> String) -> Result<(), Error> {
        self.table = table(usize::from(self.terminal.size().1));
        let text = self.table.clone();
        self.put(&text)
    }

    /// Draws the last table again, with a remark below.
    fn draw_below(&mut self, remark: &str) -> Result<(), Error> {
        let text = format!("{}{remark}\n", self.table);
        self.put(&text)
    }

    fn put(&mut self, text: &str) -> Result<(), Error> {
        let height = self.terminal.size().0;
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
