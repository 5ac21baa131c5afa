//! What an interrupt from the terminal does while a lab comes up: end the lab, then the program.

use std::path::Path;
use std::thread;

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

use crate::lab::Lab;

/// From now on an interrupt or termination ends the lab in `dir`; called before other threads exist.
///
/// # Errors
/// When the signals cannot be blocked.
pub fn guard(dir: &Path) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Threads inherit the mask, and so do programs; those of the lab drop it before they begin.
    signals.thread_block()?;
    let dir = dir.to_owned();
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("{signal}: ending the lab");
            if let Ok(lab) = Lab::attach(&dir)
                && let Err(error) = lab.down()
            {
                eprintln!("error: {error:#}");
            }
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
