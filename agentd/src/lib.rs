//! The device agent: waits for orders on MQTT and carries them out with the system `ssh`.
//!
//! [`tunnel`] decides, [`agent`] executes: one MQTT session, and one `ssh` process per tunnel, driven by [`ssh`].

pub mod agent;
pub mod ask;
pub mod authorized_keys;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod enroll;
pub mod generation;
pub mod init;
pub mod network;
pub mod process;
pub mod renew;
pub mod rotate;
pub mod rundir;
pub mod ssh;
pub mod tunnel;
pub mod user_ca;
