//! The picture in the README: a real run of commands in a lab, each on a terminal of its own, as an SVG that shows each
//! answer when it came.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::cli::report;
use crate::files;
use crate::lab::Lab;
use crate::setup::Options;
use crate::{interrupt, run};

const USER: &str = "alice";
/// What is shown, in this order.
const COMMANDS: [&str; 6] = [
    "rssh devices",
    "rssh open device-1",
    "ssh device-1 uname -n -m",
    "rssh why device-1",
    "rssh exec device-1 device-2 device-3 device-4 -- uptime -p",
    "rssh close device-1",
];
/// The terminal's size, in characters.
const COLUMNS: usize = 100;
/// How long a command takes to type, and how long its answer is looked at.
const TYPING: Duration = Duration::from_millis(600);
const READING: Duration = Duration::from_millis(1500);
/// Sizes in the picture, in its own units.
const CHARACTER: f64 = 8.4;
const LINE: usize = 19;
const MARGIN: usize = 16;

/// A command, what the terminal showed when it had ended, and how long that took.
struct Shown {
    command: &'static str,
    lines: Vec<String>,
    took: Duration,
}

/// Runs the commands in a lab of its own, and writes the picture.
///
/// # Errors
/// When one of them fails.
pub fn record(file: &Path) -> Result<()> {
    let temporary = tempfile::Builder::new().prefix("rssh-record-").tempdir()?;
    interrupt::guard(temporary.path())?;
    let lab = Lab::up(temporary.path(), Options::default(), &report)?;
    let shown: Result<Vec<Shown>> = COMMANDS.iter().map(|command| show(&lab, command)).collect();
    lab.down()?;
    files::write(file, picture(&shown?))?;
    println!("{}", file.display());
    Ok(())
}

/// Runs a command on a terminal, which script(1) makes.
fn show(lab: &Lab, command: &'static str) -> Result<Shown> {
    let place = lab.place(Some(USER))?;
    let line = format!("stty columns {COLUMNS}; exec {command}");
    let mut script = lab.command(&place, &["script", "-qec", &line, "/dev/null"]);
    script.env("TERM", "xterm").stdin(Stdio::null());
    let begin = Instant::now();
    let output = run::checked(&mut script).with_context(|| format!("{command} failed"))?;
    let took = begin.elapsed();
    report(command, took);
    let lines = screen(&output);
    ensure!(!lines.is_empty(), "{command} showed nothing");
    Ok(Shown { command, lines, took })
}

/// What a terminal shows after it was sent this: as much of one as these commands need.
fn screen(sent: &str) -> Vec<String> {
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0, 0);
    let mut rest = sent.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                if row == lines.len() {
                    lines.push(Vec::new());
                }
            }
            // ECMA-48, 5.4: a control sequence is parameters and a final byte.
            '\u{1b}' if rest.next_if_eq(&'[').is_some() => {
                let mut parameters = String::new();
                while let Some(parameter) = rest.next_if(|c| !('@'..='~').contains(c)) {
                    parameters.push(parameter);
                }
                let count = parameters.parse().unwrap_or(1);
                match rest.next() {
                    Some('A') => row = row.saturating_sub(count),
                    Some('G') => column = count.saturating_sub(1),
                    Some('K') if parameters == "2" => lines[row].clear(),
                    Some('K') => lines[row].truncate(column),
                    _ => {}
                }
            }
            other if other.is_control() => {}
            other => {
                let line = &mut lines[row];
                if line.len() <= column {
                    line.resize(column + 1, ' ');
                }
                line[column] = other;
                column += 1;
            }
        }
    }
    let mut lines: Vec<String> = lines
        .into_iter()
        .map(|line| line.into_iter().collect::<String>().trim_end().to_owned())
        .collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

/// The picture.
fn picture(shown: &[Shown]) -> String {
    let rows: usize = shown.iter().map(|shown| shown.lines.len() + 2).sum();
    let width = COLUMNS as f64 * CHARACTER + 2.0 * MARGIN as f64;
    let height = rows * LINE + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
         <title>rssh: devices behind NAT, reached on demand</title>\n\
         <!-- Made by: make recording -->\n\
         <style>\n\
         text {{ font: 14px ui-monospace, monospace; fill: #d8dee9; white-space: pre; animation: hidden step-end }}\n\
         .c {{ fill: #a3be8c; font-weight: bold }} .t {{ fill: #6b7a90 }}\n\
         @keyframes hidden {{ from, to {{ opacity: 0 }} }}\n\
         @media (prefers-reduced-motion: reduce) {{ text {{ animation: none }} }}\n\
         </style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1b2230\"/>\n"
    );
    let mut at = Duration::ZERO;
    let mut row = 1;
    let mut line = |row: usize, class: &str, at: Duration, text: &str| {
        let y = MARGIN + row * LINE - 5;
        let (at, text) = (at.as_secs_f64(), escaped(text));
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{y}\" class=\"{class}\" style=\"animation-duration:{at:.3}s\">{text}</text>"
        );
    };
    for shown in shown {
        line(row, "c", at, &format!("$ {}", shown.command));
        at += TYPING + shown.took;
        row += 1;
        for text in &shown.lines {
            line(row, "o", at, text);
            row += 1;
        }
        line(row, "t", at, &format!("# {} ms", shown.took.as_millis()));
        row += 1;
        at += READING;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text as XML has it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_drawn_over_shows_as_it_was_last() {
        let sent = "\u{1b}[?25l⠁ asking\r\u{1b}[2K\u{1b}[1mdone\u{1b}[0m\r\nnext\r\n\u{1b}[1A\u{1b}[2Kagain\r\n\r\n";
        assert_eq!(screen(sent), ["done", "again"]);
        assert_eq!(screen(""), Vec::<String>::new());
    }

    #[test]
    fn nothing_that_was_shown_is_markup() {
        let shown = [Shown {
            command: "rssh devices",
            lines: vec!["<a & b>".to_owned()],
            took: Duration::from_millis(120),
        }];
        let svg = picture(&shown);
        assert!(svg.contains("&lt;a &amp; b&gt;") && svg.contains("# 120 ms"), "{svg}");
        // The answer comes when it came: it is hidden until then, and shown by whatever knows no animations.
        assert!(svg.contains("animation-duration:0.720s"), "{svg}");
    }
}
