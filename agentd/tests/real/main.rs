//! The agent against real programs: sshd, mosquitto and the system's ssh.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by a panic, also outside of its #[test] function"
)]

mod agent;
mod at_the_device;
mod broker;
mod rig;
mod ssh;
