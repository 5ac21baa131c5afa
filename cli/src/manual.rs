//! The manual pages, from the text of the command line's own help.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::args::Cli;
use crate::error::Error;
use crate::files;
use crate::output;

/// Writes a page for each command into a directory.
///
/// # Errors
/// When it cannot be written.
pub fn write(directory: &Path) -> Result<(), Error> {
    let not_written =
        |error: io::Error| Error::configuration(format!("cannot write into {}: {error}", directory.display()));
    fs::create_dir_all(directory).map_err(not_written)?;
    for (name, page) in pages().map_err(not_written)? {
        let path = directory.join(name);
        files::replace(&path, &page, 0o644).map_err(not_written)?;
        output::data(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

/// Every page, with its file name.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = Cli::command();
    command.build();
    let mut pages = Vec::new();
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().cloned());
        let name = format!("{}.1", command.get_display_name().unwrap_or_else(|| command.get_name()));
        pages.push((name, page(command)?));
    }
    pages.sort();
    Ok(pages)
}

fn page(command: Command) -> io::Result<Vec<u8>> {
    let rest = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let is_root = command.get_name() == "rssh";
    let has_more = command.has_subcommands();
    let man = Man::new(command).manual("User Commands");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_more {
        man.render_subcommands_section(&mut page)?;
    }
    let mut more = Roff::default();
    for section in rest.split("\n\n") {
        let (title, lines) = section.split_once(":\n").unwrap_or(("Notes", section));
        // The name that man-pages(7) has for it.
        let title = match title {
            "Exit codes" => "EXIT STATUS".to_owned(),
            "Example" => "EXAMPLES".to_owned(),
            other => other.to_uppercase(),
        };
        more.control("SH", [title.as_str()]).control("nf", []);
        for line in lines.lines() {
            more.text([roman(line)]);
        }
        more.control("fi", []);
    }
    if !is_root {
        more.control("SH", ["EXIT STATUS"])
            .text([roman("As in "), bold("rssh"), roman("(1).")]);
        more.control("SH", ["SEE ALSO"]).text([bold("rssh"), roman("(1)")]);
    }
    more.to_writer(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use rssh_proto::FailureKind;

    use super::*;

    #[test]
    fn every_command_has_a_page_with_examples_and_the_root_has_the_exit_codes() {
        let pages = pages().unwrap();
        let text = |name: &str| {
            let found = pages.iter().find(|(page, _)| page == name);
            String::from_utf8(found.unwrap_or_else(|| panic!("{name}")).1.clone()).unwrap()
        };
        for command in Cli::command().get_subcommands() {
            let page = text(&format!("rssh-{}.1", command.get_name()));
            assert!(page.contains(".SH EXAMPLES\n"), "{}", command.get_name());
        }
        assert!(text("rssh-config-ssh.1").contains("rssh config ssh \\-\\-install"));
        let root = text("rssh.1");
        let codes = root.split(".SH \"EXIT STATUS\"").nth(1).unwrap();
        for kind in FailureKind::ALL {
            assert!(codes.contains(&format!("\n  {}  ", kind.exit_code())), "{kind:?}");
        }
    }
}
