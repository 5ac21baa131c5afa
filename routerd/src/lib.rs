//! Keeps an HAProxy equal to the registry of servers.
//!
//! ```text
//! Redis, PostgreSQL, MQTT --source--> route (what is known) --> Desired --plan--> Commands --runtime--> HAProxy
//!                                                                  \--files--> haproxy.cfg, maps
//! ```
//! [`route`] and [`plan`] decide and do no input or output; [`daemon`] executes.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod desired;
pub mod doctor;
pub mod files;
pub mod join;
pub mod log;
pub mod masters;
pub mod metrics;
pub mod plan;
pub mod render;
pub mod route;
pub mod runtime;
pub mod source;
pub mod state;
pub mod verify;
