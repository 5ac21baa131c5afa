//! A process of the bench that is in the lab, where its programs' files are, and is spoken with by lines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result};

/// The bench's side of it.
pub struct Inside {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Inside {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(child.stdout.take().context("the process has no output")?);
        Ok(Self { child, answers })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn go_on(&mut self) -> Result<()> {
        let orders = self.child.stdin.as_mut().context("the process has no input")?;
        Ok(orders.write_all(b"go\n")?)
    }

    /// Its next line; nothing when it has ended.
    ///
    /// # Errors
    /// When it says what is no text.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // No more orders: it ends.
        self.child.stdin = None;
        let _ = self.child.wait();
    }
}

/// Says a line to the bench.
///
/// # Errors
/// When the bench has ended.
pub fn say(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

/// Waits until the bench says to go on, or has ended.
///
/// # Errors
/// When its lines cannot be read.
pub async fn told() -> Result<()> {
    tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await??;
    Ok(())
}
