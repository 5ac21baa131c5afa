//! Runs a program to its end.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a command; returns what it wrote to stdout.
///
/// # Errors
/// When it cannot be started or fails; the message then holds what it wrote to stderr.
pub fn checked(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}; is its package installed?", program(command)))?;
    finish(command, &output)
}

/// Like [`checked`], with text on stdin.
///
/// # Errors
/// See [`checked`].
pub fn fed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}; is its package installed?", program(command)))?;
    // The input is far below what a pipe holds (64 KiB) or the program reads it all before it answers.
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .with_context(|| format!("{} does not read its input", program(command)))?;
    }
    let output = child.wait_with_output()?;
    finish(command, &output)
}

fn finish(command: &Command, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let arguments: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    bail!(
        "{} {} failed ({}): {}{}",
        program(command),
        arguments.join(" "),
        output.status,
        stdout.trim(),
        stderr.trim()
    )
}

fn program(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
