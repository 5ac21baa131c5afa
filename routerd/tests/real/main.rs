//! The router on real parts: HAProxy, Redis, PostgreSQL and mosquitto, on loopback addresses of their own.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod daemon;
mod front;
mod names;
mod parts;
mod pki;
mod public;
mod runtime;
