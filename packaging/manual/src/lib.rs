//! The daemons' manual pages, from the text of their command lines' own help.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::{Arg, Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// A daemon, and what belongs to it.
struct Daemon {
    command: Command,
    config: &'static str,
    state: &'static str,
    environment: &'static [(&'static str, &'static str)],
    see_also: &'static [(&'static str, &'static str)],
}

fn daemons() -> [Daemon; 3] {
    [
        Daemon {
            command: rssh_agentd::cli::command(),
            config: "/etc/rssh/agentd.toml",
            state: "/var/lib/rssh-agentd",
            environment: &[],
            see_also: &[("ssh", "1"), ("rssh", "1"), ("rssh-serverd", "8")],
        },
        Daemon {
            command: rssh_serverd::args::Arguments::command(),
            config: "/etc/rssh/serverd.toml",
            state: "/var/lib/rssh-serverd",
            environment: &[("RSSH_LOG", "What to log, such as info or rssh_serverd=debug.")],
            see_also: &[
                ("sshd", "8"),
                ("mosquitto", "8"),
                ("rssh-routerd", "8"),
                ("rssh-agentd", "8"),
            ],
        },
        Daemon {
            command: rssh_routerd::cli::Args::command(),
            config: "/etc/rssh/routerd.toml",
            state: "/var/lib/rssh-routerd",
            environment: &[("RUST_LOG", "What to log, such as info or rssh_routerd=debug.")],
            see_also: &[("haproxy", "1"), ("rssh-serverd", "8")],
        },
    ]
}

/// Writes a page for each daemon into a directory.
///
/// # Errors
/// When it cannot be written.
pub fn write(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for daemon in daemons() {
        let path = directory.join(format!("{}.8", daemon.command.get_name()));
        std::fs::write(&path, page(daemon)?).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn page(mut daemon: Daemon) -> io::Result<Vec<u8>> {
    daemon.command.build();
    let mut page = Vec::new();
    let man = Man::new(daemon.command.clone())
        .section("8")
        .manual("System Administration");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;

    let mut roff = Roff::default();
    roff.control("SH", ["COMMANDS"]);
    for command in daemon.command.get_subcommands() {
        describe(&mut roff, command, "");
    }
    roff.control("SH", ["FILES"]);
    for (path, what) in [
        (daemon.config, "The configuration."),
        (daemon.state, "What is kept between starts."),
    ] {
        roff.control("TP", []).text([italic(path)]).text([roman(what)]);
    }
    if !daemon.environment.is_empty() {
        roff.control("SH", ["ENVIRONMENT"]);
        for (variable, what) in daemon.environment {
            roff.control("TP", []).text([bold(*variable)]).text([roman(*what)]);
        }
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (code, what) in [
        ("0", "All is well."),
        (
            "1",
            "The command could not be carried out; the message names the object and the remedy.",
        ),
        ("64", "The command line is wrong."),
        ("78", "The configuration is wrong, and stays wrong until it is changed."),
    ] {
        roff.control("TP", []).text([bold(code)]).text([roman(what)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    let mut others: Vec<Inline> = Vec::new();
    for (name, section) in daemon.see_also {
        if !others.is_empty() {
            others.push(roman(", "));
        }
        others.extend([bold(*name), roman(format!("({section})"))]);
    }
    roff.text(others);
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// A command with its options, and the commands below it.
fn describe(roff: &mut Roff, command: &Command, above: &str) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{above}{}", command.get_name());
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    if command.has_subcommands() {
        for below in command.get_subcommands() {
            describe(roff, below, &format!("{name} "));
        }
        return;
    }
    roff.control("SS", [usage(&name, command).as_str()]);
    roff.text([roman(sentence(&about))]);
    for arg in command.get_arguments().filter(|arg| !arg.is_positional() && shown(arg)) {
        let mut term = vec![bold(format!("--{}", arg.get_long().unwrap_or_default()))];
        if let Some(value) = value(arg) {
            term.extend([roman(" "), italic(value)]);
        }
        roff.control("TP", []).text(term);
        let mut help = sentence(&arg.get_help().map(ToString::to_string).unwrap_or_default());
        let default: Vec<_> = arg
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        if !default.is_empty() && value(arg).is_some() {
            help.push_str(&format!(" Without it: {}.", default.join(" ")));
        }
        roff.text([roman(help)]);
    }
}

fn usage(name: &str, command: &Command) -> String {
    command.get_positionals().fold(name.to_owned(), |usage, arg| {
        format!(
            "{usage} {}",
            value(arg).unwrap_or_else(|| arg.get_id().to_string().to_uppercase())
        )
    })
}

fn shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str())
}

fn value(arg: &Arg) -> Option<String> {
    if !arg.get_action().takes_values() {
        return None;
    }
    let names = arg.get_value_names().unwrap_or_default();
    names.first().map(ToString::to_string)
}

/// Help has no full stop at its end; a manual has.
fn sentence(help: &str) -> String {
    let help = help.trim();
    if help.is_empty() || help.ends_with('.') {
        help.to_owned()
    } else {
        format!("{help}.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_option_of_every_daemon_is_in_its_manual() {
        for daemon in daemons() {
            let mut command = daemon.command.clone();
            command.build();
            let text = String::from_utf8(page(daemon).unwrap()).unwrap().replace("\\-", "-");
            let mut left: Vec<&Command> = command.get_subcommands().collect();
            while let Some(below) = left.pop() {
                if below.get_name() == "help" || below.is_hide_set() {
                    continue;
                }
                assert!(text.contains(below.get_name()), "{}", below.get_name());
                left.extend(below.get_subcommands());
                for arg in below.get_arguments().filter(|arg| shown(arg) && !arg.is_positional()) {
                    let option = format!("--{}", arg.get_long().unwrap());
                    assert!(below.has_subcommands() || text.contains(&option), "{option}");
                }
            }
        }
    }
}
