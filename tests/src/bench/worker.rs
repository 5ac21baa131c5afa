//! A process that stays at a place of the lab and times programs there: entering the place is not part of any figure.
//!
//! It speaks lines of JSON over its stdin and stdout. Whatever its programs leave in the background becomes its child
//! (PR_SET_CHILD_SUBREAPER), so an `ssh -f` can be ended by who started it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::Lab;
use crate::place::Place;

/// What a worker is told to do.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Run a program until it exits, whatever it leaves in the background.
    Run(Vec<String>),
    /// End what is in the background.
    End,
}

/// How a program went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    nanos: u64,
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// From just before its start to just after its exit.
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }
}

/// The running worker of a place.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker at a place.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(lab: &Lab, place: &Place) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = lab
            .command(place, &[&program.to_string_lossy(), "worker"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("a worker has no output")?);
        let mut worker = Self { child, orders, answers };
        // It is at its place once it answers.
        worker.end()?;
        Ok(worker)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a program.
    ///
    /// # Errors
    /// When it cannot be started; how it ended is in the answer.
    pub fn run(&mut self, argv: &[String]) -> Result<Ran> {
        self.ask(&Order::Run(argv.to_vec()))
    }

    /// Runs a program that has to succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn succeed(&mut self, argv: &[String]) -> Result<Ran> {
        let ran = self.run(argv)?;
        ensure!(
            ran.code == Some(0),
            "{} failed ({:?}): {}{}",
            argv.join(" "),
            ran.code,
            ran.stdout,
            ran.stderr
        );
        Ok(ran)
    }

    /// Ends what its programs left in the background.
    ///
    /// # Errors
    /// When the worker is gone.
    pub fn end(&mut self) -> Result<()> {
        self.ask(&Order::End).map(drop)
    }

    fn ask(&mut self, order: &Order) -> Result<Ran> {
        let orders = self.orders.as_mut().context("the worker has been dismissed")?;
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        orders.write_all(&line).context("the worker is gone")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let answer: Result<Ran, String> = serde_json::from_str(&answer).context("the worker gave no answer")?;
        answer.map_err(anyhow::Error::msg)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // No more orders: it ends its programs, then itself.
        self.orders = None;
        let _ = self.child.wait();
    }
}

/// Is the worker: carries orders out until there are no more.
///
/// # Errors
/// When its pipes fail.
pub fn serve() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut stdout = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Order::Run(argv) => run(&argv),
            Order::End => end_children().map(|()| Ran {
                nanos: 0,
                code: Some(0),
                stdout: String::new(),
                stderr: String::new(),
            }),
        };
        serde_json::to_writer(&mut stdout, &answer.map_err(|error| format!("{error:#}")))?;
        stdout.write_all(b"\n")?;
        stdout.flush()?;
    }
    end_children()
}

fn run(argv: &[String]) -> Result<Ran> {
    let Some((program, args)) = argv.split_first() else {
        bail!("nothing to run");
    };
    // Files and not pipes: what stays in the background keeps them open.
    let mut output = [tempfile::tempfile()?, tempfile::tempfile()?];
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(output[0].try_clone()?)
        .stderr(output[1].try_clone()?);
    let begin = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let status = child.wait()?;
    let took = begin.elapsed();
    let [stdout, stderr] = output.each_mut().map(text);
    Ok(Ran {
        nanos: took.as_nanos() as u64,
        code: status.code().or(status.signal().map(|signal| 128 + signal)),
        stdout: stdout?,
        stderr: stderr?,
    })
}

fn text(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Ends every child, and theirs: an orphan of one becomes a child in turn.
fn end_children() -> Result<()> {
    loop {
        let own = std::process::id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
        let children: Vec<Pid> = children
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
            .collect();
        if children.is_empty() {
            return Ok(());
        }
        for &child in &children {
            kill(child, Signal::SIGTERM).ok();
        }
        for child in children {
            waitpid(child, None).ok();
        }
    }
}
